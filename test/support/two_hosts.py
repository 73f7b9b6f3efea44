"""Another host on this machine: a network namespace with a link to it, where root allows that; else another loopback address."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

from lightllm.ipc.child import die_with_parent

_WAITS = "import sys; print('up', flush=True); sys.stdin.read()"


class OtherHost:
    """`here` and `there` are the addresses of the two ends of the link."""

    def __init__(self, here: str, there: str, enter: list[str], link: tuple[str, str] | None) -> None:
        self.here, self.there = here, there
        self._enter = enter
        self._link = link

    @property
    def is_apart(self) -> bool:
        """Whether its network can be cut off."""
        return self._link is not None

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A Python process on it; its output and its errors come through one pipe."""
        return subprocess.Popen(
            [*self._enter, sys.executable, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            preexec_fn=die_with_parent,
        )  # fmt: skip

    def ask(self, *words: str) -> str:
        process = self.start(*words)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    def cut(self) -> None:
        """Nothing passes any more, and nobody is told."""
        assert self._link is not None
        _run(*self._enter, "ip", "link", "set", self._link[1], "down")

    def mend(self) -> None:
        assert self._link is not None
        _run(*self._enter, "ip", "link", "set", self._link[1], "up")


@contextlib.contextmanager
def other_host() -> Iterator[OtherHost]:
    with contextlib.ExitStack() as closing:
        try:
            host = _namespace(closing)
        except (OSError, subprocess.CalledProcessError):
            host = OtherHost("127.0.0.1", "127.0.0.2", [], None)
        yield host


def _namespace(closing: contextlib.ExitStack) -> OtherHost:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        raise OSError("network namespaces need root, iproute2 and util-linux")
    # its standard input ends it
    holder = subprocess.Popen(
        ["unshare", "-n", sys.executable, "-c", _WAITS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        preexec_fn=die_with_parent,
    )  # fmt: skip
    closing.callback(holder.wait, 10)
    assert holder.stdin is not None and holder.stdout is not None
    closing.callback(holder.stdin.close)
    if holder.stdout.readline() != "up\n":
        raise OSError("no network namespace")
    near, far = f"llm{os.getpid() % 100000}a", f"llm{os.getpid() % 100000}b"
    subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
    enter = ["nsenter", "-t", str(holder.pid), "-n"]
    _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", str(holder.pid))
    closing.callback(subprocess.run, ["ip", "link", "del", near], capture_output=True)
    _run("ip", "addr", "add", f"{subnet}.1/30", "dev", near)
    _run("ip", "link", "set", near, "up")
    _run(*enter, "ip", "addr", "add", f"{subnet}.2/30", "dev", far)
    _run(*enter, "ip", "link", "set", far, "up")
    _run(*enter, "ip", "link", "set", "lo", "up")
    return OtherHost(f"{subnet}.1", f"{subnet}.2", enter, (near, far))


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=10)
