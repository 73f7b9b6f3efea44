"""Reward models: a language model whose head gives every position a score instead of logits (`--use_reward_model`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightllm.layers.embedding import VocabEmbedding
from lightllm.models.builder import Builder
from lightllm.models.internlm2 import InternLM2ForCausalLM
from lightllm.models.llama import LlamaForCausalLM

Head = Callable[[torch.Tensor], torch.Tensor]


class InternLM2ForRewardModel(InternLM2ForCausalLM):
    """score = v · h (InternLM2 technical report, arXiv 2403.17297)"""

    scores = True

    def make_ends(self, build: Builder) -> tuple[VocabEmbedding, Head]:
        v_head = build.whole_linear("v_head", build.config.hidden_size, 1, bias=False)
        return build.embedding(self.names.embedding), lambda x: v_head(x).float()


class Qwen2ForRewardModel(LlamaForCausalLM):
    """score = w · relu(W h + b) + c (Qwen2.5-Math technical report, arXiv 2409.12122)"""

    scores = True

    def make_ends(self, build: Builder) -> tuple[VocabEmbedding, Head]:
        hidden = build.config.hidden_size
        first = build.whole_linear("score.0", hidden, hidden, bias=True)
        second = build.whole_linear("score.2", hidden, 1, bias=True)
        return build.embedding(self.names.embedding), lambda x: second(torch.relu(first(x))).float()
