"""Small random reward models in their published format, with what they should answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from support.model_zoo import make_zoo_model, read_tensors, write_checkpoint

REWARD_TOKEN = 379


def make_reward_model(path: Path, architecture: str) -> Callable[[list[int]], torch.Tensor]:
    """Writes the checkpoint; returns the reference: token ids -> the score at every position, float32 [T]."""
    name = {"InternLM2ForRewardModel": "internlm2", "Qwen2ForRewardModel": "qwen2"}[architecture]
    zoo_model = make_zoo_model(path, name)
    tensors = read_tensors(path)
    generator = torch.Generator().manual_seed(1)
    if name == "internlm2":
        del tensors["output.weight"]
        head = {"v_head.weight": torch.randn(1, 64, generator=generator)}
    else:
        del tensors["lm_head.weight"]
        head = {
            "score.0.weight": torch.randn(64, 64, generator=generator) / 8,
            "score.0.bias": torch.randn(64, generator=generator),
            "score.2.weight": torch.randn(1, 64, generator=generator) / 8,
            "score.2.bias": torch.randn(1, generator=generator),
        }
    raw = {**json.loads((path / "config.json").read_text()), "architectures": [architecture]}
    if name == "internlm2":
        raw["reward_token_id"] = REWARD_TOKEN
    write_checkpoint(path, tensors | head, raw)

    @torch.inference_mode()
    def reference(token_ids: list[int]) -> torch.Tensor:
        x = zoo_model.model.model(torch.tensor([token_ids])).last_hidden_state[0]
        if name == "internlm2":
            return (x @ head["v_head.weight"].T)[:, 0]
        x = torch.relu(x @ head["score.0.weight"].T + head["score.0.bias"])
        return (x @ head["score.2.weight"].T + head["score.2.bias"])[:, 0]

    return reference
