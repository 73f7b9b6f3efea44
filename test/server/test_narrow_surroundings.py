"""Where the machine gives little: full or read-only file systems, few descriptors, no home. The server starts and serves, or says
in one line what it lacks. With the demo model, whose libraries have caches and shared memory of their own."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from support.server import SERVER_COMMAND, LightLLMServer

pytestmark = pytest.mark.slow


class Place(NamedTuple):
    """What surrounds the server."""

    setup: str
    """Shell commands before the launch, in a mount namespace of its own; $PLACE is an empty folder."""
    environment: Mapping[str, str] = {}
    refusal: str = ""
    """Pattern of the one line with which the launch ends; "" if it serves."""
    options: tuple[str, ...] = ()


_FILL = "dd if=/dev/zero of={0}/fill bs=4k 2>/dev/null; true"
_OWN_TMP = {"LIGHTLLM_RUNTIME_BASE": ""}
"""The runtime folder lies in TMPDIR."""

PLACES = {
    "full /dev/shm": Place(
        "mount -t tmpfs -o size=64k none /dev/shm && " + _FILL.format("/dev/shm"), refusal=r"/dev/shm has 0 of 64 KiB free"
    ),
    "read-only /dev/shm": Place("mount -t tmpfs -o ro none /dev/shm"),
    "tiny TMPDIR": Place("mount -t tmpfs -o size=512k none $PLACE && export TMPDIR=$PLACE", _OWN_TMP),
    "full TMPDIR": Place(
        "mount -t tmpfs -o size=8k none $PLACE && export TMPDIR=$PLACE && " + _FILL.format("$PLACE"), _OWN_TMP
    ),
    "too small a runtime folder": Place(
        "mount -t tmpfs -o size=8k none $PLACE", {"LIGHTLLM_RUNTIME_BASE": "$PLACE"}, refusal=r"No space left on device|has 0 of 8 KiB free"
    ),
    "TMPDIR that is not there": Place("export TMPDIR=$PLACE/missing", _OWN_TMP),
    "everything read-only but /tmp": Place(
        "mount -t tmpfs none /tmp && mount -o remount,bind,ro /", {**_OWN_TMP, "TMPDIR": "/tmp"}
    ),
    "everything read-only": Place(
        "mount -t tmpfs -o ro none /tmp && mount -t tmpfs -o ro none /dev/shm && mount -o remount,bind,ro /",
        {**_OWN_TMP, "TMPDIR": "/tmp"}, refusal=r"No runtime folder can be made in \S+: Read-only file system",
    ),
    "HOME that is not there": Place("export HOME=$PLACE/missing"),
    "HOME that cannot be written": Place("mount -t tmpfs -o ro none $PLACE && export HOME=$PLACE"),
    "no HOME": Place("unset HOME"),
    "256 descriptors": Place("ulimit -n 256", options=("--httpserver_workers", "2")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _needs_mounts() -> None:
    try:
        subprocess.run(["unshare", "-m", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mounts of our own here")


@pytest.mark.parametrize("name", PLACES)
def test_it_serves_or_says_in_one_line_what_it_lacks(name: str, tmp_path: Path) -> None:
    place = PLACES[name]
    command = ("unshare", "-m", "sh", "-c", f'{place.setup} && exec "$@"', "sh", *SERVER_COMMAND)
    environment = {name: value.replace("$PLACE", str(tmp_path)) for name, value in place.environment.items()}
    environment["PLACE"] = str(tmp_path)
    if not place.refusal:
        with LightLLMServer(place.options, command=command, environment=environment) as server:
            body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 8}}
            response = httpx.post(server.url + "/generate", json=body, timeout=60)
            assert response.status_code == 200 and response.json()["count_output_tokens"] > 0
            assert "Traceback" not in server.log
        return
    done = subprocess.run(
        [*command, "--port", "0"], env=os.environ | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert re.match("lightllm: error: .*(" + place.refusal + ")", done.stderr.splitlines()[-1]), done.stderr
    assert "Traceback" not in done.stderr
