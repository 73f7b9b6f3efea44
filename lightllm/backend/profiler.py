"""torch's profiler on demand: what the main thread and the GPU did between two calls, as a Chrome trace."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


class Profiler:
    """`start` and `stop` must be called from the thread that is to be profiled. Both raise `RuntimeError` when they come
    at the wrong time."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._running: profile | None = None

    def start(self) -> None:
        if self._running is not None:
            raise RuntimeError("a profile is running already: stop it first")
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        running = profile(activities=activities)
        running.start()
        self._running = running

    def stop(self) -> str:
        """Path of the trace, in a new folder that only this user can read."""
        if self._running is None:
            raise RuntimeError("no profile is running: start one first")
        running, self._running = self._running, None
        running.stop()
        path = Path(tempfile.mkdtemp(prefix="lightllm-profile-")) / f"rank-{self._rank}.json.gz"
        running.export_chrome_trace(str(path))
        return str(path)
