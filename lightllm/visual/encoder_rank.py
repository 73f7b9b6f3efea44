"""One tensor parallel rank of an encoder: its device and its part of the weights. Rank 0 is the Visual Server itself."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from lightllm.config import ServerConfig
from lightllm.distributed.rendezvous import Rendezvous
from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import DeviceError, InvalidModel
from lightllm.images.serving import encoder_gpus
from lightllm.machine import available_memory
from lightllm.models.vision.model import VisionModel
from lightllm.models.vision.registry import load_vision_model


def load_encoder_rank(
    config: ServerConfig,
    server: int,
    rank: int = 0,
    meeting: str = "",
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[VisionModel, TpGroup]:
    """server: number of the Visual Server; meeting: file in which the ranks find each other, "": this one is alone. Raises
    `StartupError`."""
    if config.model_dir is None:
        raise InvalidModel("The Visual Server needs a model folder.", "Give --model_dir.")
    device, group = choose_device(config, server, rank), TpGroup()
    if meeting:
        timeouts = (config.startup_timeout, config.round_timeout)
        group = TpGroup.join(Rendezvous(rank, config.visual_tp, *timeouts, file=meeting), device)
    model = load_vision_model(
        config.model_dir,
        data_type=config.data_type,
        device=device,
        load_way=config.load_way,
        group=group,
        memory=available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0],
        progress=progress,
    )
    group.wait_for_all("loaded", config.startup_timeout)
    return model, group


NICENESS = 5
"""Of the threads of an encoder on a CPU (see nice(2)): where cores are scarce the language model's go first."""


def give_way(config: ServerConfig) -> None:
    """For the rest of this process, if it encodes on a CPU. To be called before there are threads that compute."""
    if _on_cpu(config):
        os.nice(NICENESS)


def _on_cpu(config: ServerConfig) -> bool:
    return config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available())


def choose_device(config: ServerConfig, server: int, rank: int) -> torch.device:
    """The current one from here on, if it is a GPU. Raises `DeviceError` for one that is not there."""
    if _on_cpu(config):
        if config.visual_gpu_ids is not None:
            raise DeviceError("--visual_gpu_ids: torch finds no usable GPU.", "Leave it out.")
        return torch.device("cpu")
    index, count = encoder_gpus(config, server)[rank], torch.cuda.device_count()
    if index >= count:
        raise DeviceError(
            f"There is no GPU {index} for rank {rank} of Visual Server {server}, there are {count}.",
            "Name GPUs that are there: --visual_gpu_ids (one may serve several encoders).",
        )
    torch.cuda.set_device(index)  # where Triton launches kernels
    return torch.device("cuda", index)
