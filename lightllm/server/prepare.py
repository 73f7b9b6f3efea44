"""From the parsed options to the config that all processes get: model folder, model name, port."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import os
from pathlib import Path

from lightllm.backend.mock_spec import MockSpec
from lightllm.config import ServerConfig
from lightllm.config_sources import readable_by_others
from lightllm.errors import InvalidOption
from lightllm.http.key_ring import read_key_file
from lightllm.http.tls import ServerTls
from lightllm.ipc.nodes import read_secret
from lightllm.model_folder.config import read_model_config
from lightllm.model_folder.location import resolve_model_dir
from lightllm.model_folder.pooling import pooling_method
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.hf_configs import load_config
from lightllm.models.tasks import resolve_task
from lightllm.ops import cpu_kind
from lightllm.quantization.kv_types import check_kv_type
from lightllm.quantization.quant_plan import check_dense, read_plan
from lightllm.server.vision import check_vision

DEMO_MODEL_NAME = "lightllm-demo"
_OTEL = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def resolve_config(config: ServerConfig) -> ServerConfig:
    """Checks what can be checked before any process starts; downloads a hub model. Raises `StartupError`."""
    if config.mock_backend is not None:
        MockSpec.parse(config.mock_backend)
        if config.pools:
            raise InvalidOption("--mock_backend makes texts.", "Leave out --task.")
    _check_names(config)
    _check_nodes(config)
    _check_files(config)
    _check_observers(config)
    if config.enable_monitor_auth and not (os.environ.get("USERNAME") and os.environ.get("PASSWORD")):
        raise InvalidOption("--enable_monitor_auth: USERNAME or PASSWORD is missing in the environment.")
    if config.chat_template is not None and not Path(config.chat_template).is_file():
        raise InvalidOption(f"--chat_template {config.chat_template} is not a file.")
    log = logging.getLogger("supervisor")
    cpu_kind.chosen()  # raises where LIGHTLLM_CPU_KIND is wrong
    model_dir = os.path.abspath(resolve_model_dir(config.model_dir, log.info))
    read_model_config(model_dir)
    if config.mock_backend is None:
        shape = load_config(model_dir)
        shape.for_rank(config.tp)
        _check_kind(shape.architecture, config.use_reward_model)
        check_kv_type(config.llm_kv_type, shape.mla is not None)
        plan = read_plan(config.quant_type, config.quant_cfg)
        check_dense(config.quant_type, plan, shape.quantization)
        config = dataclasses.replace(config, task=resolve_task(model_dir, config.task))
    names = config.model_name or [default_model_name(config.model_dir)]
    config = dataclasses.replace(config, model_dir=model_dir, model_name=names)
    check_vision(config)
    _say_task(config)
    return config


def _say_task(config: ServerConfig) -> None:
    if config.pools and (method := pooling_method(config)) is not None:
        log = logging.getLogger("supervisor")
        log.info("the model makes vectors: task %s, pooling: %s", config.serves, method)


def _check_files(config: ServerConfig) -> None:
    """Of keys and certificates."""
    if config.api_key_file is not None:
        read_key_file(config.api_key_file)
        if readable_by_others(config.api_key_file):
            logging.getLogger("supervisor").warning(
                "--api_key_file %s can be read by others: chmod 600 %s",
                config.api_key_file,
                config.api_key_file,
            )
    if config.ssl_certfile is not None:
        ServerTls(config.ssl_certfile, config.ssl_keyfile)
    elif config.ssl_keyfile is not None:
        raise InvalidOption("--ssl_keyfile is of no use alone.", "Give --ssl_certfile too.")


def _check_observers(config: ServerConfig) -> None:
    """Who keeps what became of requests."""
    if config.request_log_prompts and config.request_log is None:
        raise InvalidOption("--request_log_prompts is of no use alone.", "Give --request_log too.")
    if config.otlp_traces_endpoint is not None and not all(map(_is_installed, _OTEL)):
        raise InvalidOption(
            "--otlp_traces_endpoint needs packages that are not installed.", "pip install 'lightllm[otel]'"
        )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


def _check_names(config: ServerConfig) -> None:
    """Names travel in JSON: they must be text."""
    for option in ("model_dir", "model_name", "chat_template"):
        given = getattr(config, option)
        for value in given if isinstance(given, list) else [given or ""]:
            if any("\udc80" <= character <= "\udcff" for character in value):
                raise InvalidOption(
                    f"--{option} {value!a} holds bytes that are no text.", "Give it another name."
                )


def _check_kind(architecture: str, use_reward_model: bool) -> None:
    scores = ARCHITECTURES[architecture].scores
    if use_reward_model and not scores:
        raise InvalidOption(f"--use_reward_model: {architecture} is no reward model.", "Leave it out.")
    if scores and not use_reward_model:
        raise InvalidOption(f"{architecture} is a reward model.", "Add --use_reward_model.")


def _check_nodes(config: ServerConfig) -> None:
    if config.node_rank >= config.nnodes:
        raise InvalidOption(
            f"--node_rank {config.node_rank} is not below --nnodes {config.nnodes}.",
            "Nodes are counted from 0.",
        )
    if config.tp % config.nnodes:
        raise InvalidOption(
            f"--tp {config.tp} ranks cannot be split evenly over --nnodes {config.nnodes}.",
            "Choose another --tp.",
        )
    if config.nnodes > 1:
        read_secret(config)
        secret_file = config.cluster_secret_file
        if secret_file is not None and readable_by_others(secret_file):
            logging.getLogger("supervisor").warning(
                "--cluster_secret_file %s can be read by others: chmod 600 %s", secret_file, secret_file
            )


def default_model_name(model_dir: str | None) -> str:
    """The hub id, or the last part of the folder."""
    if model_dir is None:
        return DEMO_MODEL_NAME
    if not Path(model_dir).expanduser().is_dir():
        return model_dir  # `resolve_model_dir` has found it on the hub
    return os.path.basename(os.path.abspath(model_dir))
