"""Descriptors 0, 1 and 2 as a process needs them, whatever it was started with."""

from __future__ import annotations

import os
import sys


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
