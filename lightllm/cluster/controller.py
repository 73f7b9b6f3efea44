"""The controller: `lightllm controller [options]`, `python -m lightllm.cluster.controller [options]`.

Exit codes: 0 after a requested stop, 2 when the start failed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import signal
import sys
from collections.abc import Sequence

import uvloop

from lightllm.cluster.config import OTHER_NAMES, ControllerConfig
from lightllm.cluster.options import parse_options
from lightllm.errors import StartupError

_DESCRIPTION = "Many servers behind one address: knows its workers, and sends each request to one of them."


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    try:
        config = parse_options(ControllerConfig, words, "lightllm controller", _DESCRIPTION, OTHER_NAMES)
        _serve(config)
    except StartupError as error:
        print(f"lightllm controller: error: {error}", file=sys.stderr)
        return 2
    return 0


def _serve(config: ControllerConfig) -> None:
    require_aiohttp()
    from lightllm.cluster.service import Controller

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    controller = Controller(config)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for number in (signal.SIGTERM, signal.SIGINT):
            runner.get_loop().add_signal_handler(number, controller.stop)
        runner.get_loop().add_signal_handler(signal.SIGHUP, controller.reload)
        runner.run(controller.run())


def require_aiohttp() -> None:
    """Raises `StartupError`."""
    if importlib.util.find_spec("aiohttp") is None:
        raise StartupError("aiohttp is not installed.", "pip install 'lightllm[cluster]'")


if __name__ == "__main__":
    sys.exit(main())
