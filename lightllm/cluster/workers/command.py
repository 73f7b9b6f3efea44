"""A worker: `lightllm worker KIND [options] [-- options of the server]`, `python -m lightllm.cluster.workers KIND ...`.

    lightllm worker model -- --model_dir DIR            starts a server of ours and registers it
    lightllm worker model --server_url http://...       registers one that runs already
    lightllm worker vllm -- --model NAME                the same with a server of vLLM's
    lightllm worker huggingface --model_info_file FILE  models behind APIs

Exit codes: 0 after a requested stop, 1 when the server behind it ended, 2 when the start failed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightllm.cluster.controller import require_aiohttp
from lightllm.cluster.options import parse_options
from lightllm.cluster.workers.config import OTHER_NAMES, WorkerConfig
from lightllm.errors import InvalidOption, StartupError

KINDS = ("model", "vllm", "huggingface")
_DESCRIPTION = "Registers a server with controllers, and speaks FastChat's worker protocol for it."


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    words, behind = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    try:
        kind = words[0] if words and not words[0].startswith("-") else ""
        if not kind and not {"--help", "-h"} & set(words):
            raise InvalidOption(
                f"Which kind of worker: {', '.join(KINDS)}?", "lightllm worker model -- --model_dir DIR"
            )
        if kind and kind not in KINDS:
            raise InvalidOption(f"There is no worker {kind!r}.", f"There are: {', '.join(KINDS)}.")
        config = parse_options(
            WorkerConfig, words[1:] if kind else words, f"lightllm worker {kind or 'KIND'}", _DESCRIPTION, OTHER_NAMES,
            prefix="LIGHTLLM_WORKER_",
        )  # fmt: skip
        if behind and config.server_url:
            raise InvalidOption("--server_url and options behind -- are two servers.", "Leave one out.")
        if kind == "huggingface" and not config.model_info_file:
            raise InvalidOption("Which models? --model_info_file is missing.", "See docs/cluster.md.")
        if kind == "huggingface" and (behind or config.server_url):
            raise InvalidOption(
                "A worker huggingface has no server behind it.", "Leave --server_url and -- out."
            )
        if kind != "huggingface" and config.model_info_file:
            raise InvalidOption("--model_info_file is of the worker huggingface.", f"Leave it out of {kind}.")
        require_aiohttp()
        from lightllm.cluster.workers.service import serve

        return serve(kind, config, behind)
    except StartupError as error:
        print(f"lightllm worker: error: {error}", file=sys.stderr)
        return 2
