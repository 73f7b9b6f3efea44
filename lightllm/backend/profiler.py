"""torch's profiler on demand: what the main thread and the GPU did in some rounds, as a Chrome trace.

    start ----rounds----> end of the recording ----a thread writes the trace----> result

A recording grows with every operation of every round, and its end costs torch about half of what was recorded (the round
that comes next waits), so it ends by itself. Only the writing can go on beside the rounds.
"""

from __future__ import annotations

import gzip
import os
import shutil
import tempfile
import threading
import time
from concurrent.futures import Future
from pathlib import Path

import torch
from torch.autograd.profiler import profile  # torch.profiler's would import its compiler first, for seconds

MAX_SECONDS = 60.0
"""A recording ends with the first round after this time, whatever number of rounds it was started for."""


class Profiler:
    """`start`, `round_done` and `stop` must be called from the thread that is to be profiled. `start` and `stop` raise
    `RuntimeError` when they come at the wrong time."""

    def __init__(self, rank: int, folder: str | None) -> None:
        """folder: where traces go; made if it is not there."""
        self._rank = rank
        self._folder = folder
        self._recording: profile | None = None
        self._rounds_left = 0
        self._ends_at = 0.0
        self._trace: Future[str] | None = None
        """Of the last recording, until `stop` has asked for it."""

    def start(self, rounds: int) -> None:
        """Records the next `rounds` rounds."""
        if self._folder is None:
            raise RuntimeError("profiles are off: start the server with --profile_dir FOLDER")
        if self._recording is not None:
            raise RuntimeError("a profile is running already: stop it first")
        if self._trace is not None and not self._trace.done():
            raise RuntimeError("the last profile is still being written: stop_profile waits for it")
        Path(self._folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        recording = profile(use_device="cuda" if torch.cuda.is_available() else None)
        recording.__enter__()
        self._trace = None
        self._rounds_left = rounds
        self._ends_at = time.monotonic() + MAX_SECONDS
        self._recording = recording

    def round_done(self) -> None:
        """To be called after every round."""
        if self._recording is None:
            return
        self._rounds_left -= 1
        if self._rounds_left <= 0 or time.monotonic() >= self._ends_at:
            self._end(self._recording)

    def stop(self) -> Future[str]:
        """Ends the recording if it has not ended yet. The path of its trace, in a new folder that only this user can read,
        once it is written; or the `OSError` that kept it from being written."""
        if self._recording is not None:
            self._end(self._recording)
        if self._trace is None:
            raise RuntimeError("no profile is running: start one first")
        trace, self._trace = self._trace, None
        return trace

    def _end(self, recording: profile) -> None:
        self._recording = None
        trace = self._trace = Future()
        try:
            recording.__exit__(None, None, None)
        except Exception as error:  # rounds go on; the request for the trace gets the error
            trace.set_exception(error)
            return
        arguments = (recording, Path(self._folder or "").absolute(), trace)
        threading.Thread(target=self._write, args=arguments, name="profile", daemon=True).start()

    def _write(self, recording: profile, folder: Path, trace: Future[str]) -> None:
        """In a thread. Uncompressed first, as torch has it, in the same folder: it is large."""
        try:
            place = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=folder))
            path = place / f"rank-{self._rank}.json.gz"
            plain = path.with_suffix("")
            try:
                recording.export_chrome_trace(str(plain))
                with open(plain, "rb") as source, gzip.open(path, "wb", compresslevel=3) as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except BaseException:
                shutil.rmtree(place, ignore_errors=True)
                raise
            os.unlink(plain)
            trace.set_result(str(path))
        except Exception as error:  # the caller of `stop` is told
            trace.set_exception(error)
