"""What a launch does for a model that sees, before any process starts: checks, and the folder of the image cache."""

from __future__ import annotations

import logging

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.images import check_installed
from lightllm.images.layouts.registry import sees
from lightllm.images.limits import ImageLimits
from lightllm.images.serving import embedding_width, encoder_gpus, most_tokens, serves_images
from lightllm.ipc.image_files import largest_size
from lightllm.ipc.image_folder import ImageFolder, make_image_folder
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.model_folder.config import read_whole_config

log = logging.getLogger("supervisor")


def check_vision(config: ServerConfig) -> None:
    """config: with the model folder resolved. Raises `StartupError`; for a text model nothing is looked at."""
    if serves_images(config):
        check_installed()
        ImageLimits.of(config)
        _check_encoders(config)
    elif config.nnodes > 1 and config.model_dir and sees(read_whole_config(config.model_dir)):
        log.warning("--nnodes %d: images are not taken", config.nnodes)


def _check_encoders(config: ServerConfig) -> None:
    """How many GPUs there are is known to processes that load torch: a Visual Server refuses what is not there."""
    ids = config.visual_gpu_ids
    if ids is None:
        return
    if config.device == "cpu":
        raise InvalidOption(
            "--visual_gpu_ids: with --device cpu no GPU is used.", "Leave out one of the two."
        )
    needed = config.visual_dp * config.visual_tp
    if len(ids) < needed:
        raise InvalidOption(
            f"--visual_gpu_ids names {len(ids)} GPUs, --visual_dp {config.visual_dp} with --visual_tp {config.visual_tp} "
            f"needs {needed}.",
            "Name one for each rank of each encoder.",
        )
    for server in range(config.visual_dp):
        if len(set(gpus := encoder_gpus(config, server))) < config.visual_tp:
            raise InvalidOption(
                f"--visual_gpu_ids: the ranks of one encoder need GPUs of their own, Visual Server {server} has "
                f"{' '.join(map(str, gpus))}.",
                "Name each once for an encoder.",
            )
    if len(ids) > needed:
        log.warning("--visual_gpu_ids: the first %d of %d GPUs are used", needed, len(ids))


def make_cache_folder(config: ServerConfig, runtime: RuntimeDir) -> ImageFolder:
    """Raises `StartupError` where there is no room for it."""
    assert config.model_dir is not None
    shape = [most_tokens(config), embedding_width(config.model_dir)]
    largest = largest_size(config.max_image_mb << 20, shape, "float32")
    return make_image_folder(runtime, config.cache_capacity_bytes, largest)
