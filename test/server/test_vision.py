"""What a launch checks for a model that sees: one line for options that do not fit together."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.images.serving import encoder_gpus
from lightllm.server.vision import check_vision


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"visual_dp": 2, "visual_gpu_ids": [0]}, "names 1 GPUs, --visual_dp 2 with --visual_tp 1 needs 2"),
        ({"visual_tp": 2, "visual_gpu_ids": [1, 1]}, "need GPUs of their own, Visual Server 0 has 1 1"),
        ({"device": "cpu", "visual_gpu_ids": [0]}, "with --device cpu no GPU is used"),
    ],
)
def test_options_of_encoders_that_do_not_fit_together_are_refused(
    folder: str, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidOption, match=said):
        check_vision(ServerConfig(model_dir=folder, **options))
    (Path(folder) / "config.json").write_text(json.dumps({"model_type": "llama"}))
    check_vision(ServerConfig(model_dir=folder, **options))


def test_each_rank_of_each_encoder_has_the_gpu_that_was_named_for_it(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = ServerConfig(model_dir=folder, visual_dp=2, visual_gpu_ids=[3, 1, 0])
    with caplog.at_level(logging.WARNING):
        check_vision(config)
    assert "the first 2 of 3 GPUs" in caplog.text
    assert [encoder_gpus(config, server) for server in range(2)] == [[3], [1]]
    assert encoder_gpus(ServerConfig(visual_dp=2, visual_tp=2), 1) == [2, 3]
