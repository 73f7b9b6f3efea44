"""UTF-8 for the names of files, for options and for the log, whatever the locale."""

from __future__ import annotations

import os
import sys

_VARIABLE = "PYTHONUTF8"


def use_utf8() -> None:
    """Starts the interpreter anew in UTF-8 mode (PEP 540) if it took the locale's encoding for something else: names that
    are not ASCII could neither be opened by libraries nor be sent to clients. Children inherit the mode."""
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get(_VARIABLE) != "1":
        os.environ[_VARIABLE] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
