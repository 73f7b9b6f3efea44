"""Options of workers."""

from __future__ import annotations

import dataclasses

from lightllm.cluster.workers.conversations import CONVERSATIONS
from lightllm.option_spec import at_least
from lightllm.option_spec import option as _option

_WORKER, _BEHIND = "Worker", "What answers"
OTHER_NAMES = {
    "controller": "controller_address",
    "model_path": "model_dir",
    "tensor_parallel_size": "tp",
    "model": "model_dir",
}
"""Options of other workers, and ours for the same."""


@dataclasses.dataclass(frozen=True)
class WorkerConfig:
    host: str = _option("127.0.0.1", "HTTP bind address.", _WORKER)
    port: int = _option(21002, "HTTP port; 0 takes a free one.", _WORKER, type=int,
                        check=lambda v: 0 <= v < 65536, expects="a port number, 0 to 65535")  # fmt: skip
    worker_address: str | None = _option(
        None, "URL that controllers and clients reach the worker by; default: where it listens.", _WORKER, metavar="URL")  # fmt: skip
    controller_address: list[str] | None = _option(
        None, "Controllers to register with; default: http://127.0.0.1:21001.", _WORKER, nargs="+", metavar="URL")  # fmt: skip
    cluster_secret_file: str | None = _option(
        None, "File with the secret that the controllers have.", _WORKER, metavar="FILE")  # fmt: skip
    controller_api_key: str | None = _option(
        None, "Key of an operator of controllers that have keys and no secret.", _WORKER, metavar="KEY")  # fmt: skip
    no_register: bool = _option(False, "Serves without a controller.", _WORKER)
    limit_worker_concurrency: int = _option(
        1024, "Requests at once; further ones wait.", _WORKER, **at_least(1)
    )
    speed: float = _option(
        1.0, "How fast it is, relative to other workers of the model.", _WORKER, type=float, check=lambda v: v > 0,
        expects="more than 0")  # fmt: skip
    labels: list[str] | None = _option(
        None, "LABEL=VALUE, shown by the controller.", _WORKER, nargs="+", metavar="LABEL=VALUE",
        check=lambda v: all("=" in label for label in v), expects="LABEL=VALUE")  # fmt: skip
    conv_template: str | None = _option(
        None, "FastChat's conversation template for clients that build prompts themselves; default: found by the model's chat template.",
        _WORKER, choices=tuple(CONVERSATIONS))  # fmt: skip
    context_length: int = _option(
        2048, "Tokens of a prompt and its answer, where nothing says how many.", _WORKER, **at_least(1)
    )
    server_url: str | None = _option(
        None, "A server that runs already; without it one is started, with the options behind `--`.", _BEHIND, metavar="URL")  # fmt: skip
    server_api_key: str | None = _option(None, "Key for it.", _BEHIND, metavar="KEY")
    model_names: list[str] | None = _option(
        None, "Names to register; default: those that the server says.", _BEHIND, nargs="+", metavar="NAME")  # fmt: skip
    model_info_file: str | None = _option(
        None, "JSON: {NAME: {model_path, api_base, token, context_length}} of models behind APIs (worker huggingface).", _BEHIND,
        metavar="FILE")  # fmt: skip
