"""The launch command: `python -m lightllm.server.api_server [--model_dir DIR] [options]`.

Exit codes: 0 after a requested stop, 1 when a process failed while serving, 2 when the start failed, 130 when a second
Ctrl-C cut the stop short.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightllm.server.encoding import use_utf8
from lightllm.server.signals import end_at_signals
from lightllm.server.standard_streams import open_missing_streams


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


if __name__ == "__main__":
    sys.exit(main())
