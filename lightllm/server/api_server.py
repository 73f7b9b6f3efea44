"""The launch command: `python -m lightllm.server.api_server [--model_dir DIR] [options]`.

Exit codes: 0 after a requested stop, 1 when a process failed while serving, 2 when the start failed, 130 when a second
Ctrl-C cut the stop short.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from lightllm.server.signals import end_at_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a server until it is stopped; returns the exit code.

    Signals first, then descriptors, then everything else: the imports take a tenth of a second, in which a container may
    be stopped already, and whatever opens a file first would get the number of a stream that is closed.
    """
    if argv is None:
        use_utf8()
    end_at_signals()
    open_missing_streams()
    from lightllm.server.launch import launch

    return launch(sys.argv[1:] if argv is None else argv)


def use_utf8() -> None:
    """Starts the interpreter anew in UTF-8 mode (PEP 540) if it took the locale's encoding for something else: names that
    are not ASCII could neither be opened by libraries nor be sent to clients. Children inherit the mode."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def open_missing_streams() -> None:
    """Opens /dev/null for those that are closed: the next socket or file would get their number, and what is meant for a
    stream would go there. (Some launchers close what they do not need, as `<&-` does in a shell.)"""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free is this one
            os.set_inheritable(descriptor, True)
    if sys.stdin is None:
        sys.stdin = os.fdopen(0, "r", closefd=False)
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
