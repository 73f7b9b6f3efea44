"""A small random Qwen-VL as it is published, and its references in plain torch: encoder and language model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models.references import qwen, qwen_vl
from PIL import Image

from support.model_zoo import RoundedResults, write_checkpoint
from support.vision_models import Tensors, VisionReference
from support.vision_prompts import write_vision_tokenizer

WIDTH, INNER, SIZE, QUERIES, LAYERS = 32, 64, 256, 9, 2
VISUAL: dict[str, Any] = {
    "width": WIDTH, "layers": LAYERS, "heads": 4, "mlp_ratio": 2.0, "output_dim": SIZE, "patch_size": 4, "image_size": 72,
    "n_queries": QUERIES,
}  # fmt: skip
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation of the three colours."""
SPECIAL_TOKENS, TOKENS_BEFORE_IMG = 217, 214
"""Behind the vocabulary in qwen.tiktoken; how many of them stand before <img>."""


def make_qwen_vl(path: Path, dtype: str, std: float) -> VisionReference:
    write_vision_tokenizer(path, "qwen-vl", 0)
    vocabulary = len((path / "qwen.tiktoken").read_text().splitlines())
    raw = {
        "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "torch_dtype": dtype, "hidden_size": SIZE,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "kv_channels": 64, "intermediate_size": 256, "no_bias": True,
        "vocab_size": vocabulary + SPECIAL_TOKENS, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0,
        "seq_length": 2048, "max_position_embeddings": 8192, "use_dynamic_ntk": True, "use_logn_attn": True,
        "scale_attn_weights": True, "tie_word_embeddings": False,
        "visual": {**VISUAL, "image_start_id": vocabulary + TOKENS_BEFORE_IMG},
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    tensors: Tensors = {}
    for name, shape in {**_visual_shapes(), **_language_shapes(raw["vocab_size"])}.items():
        is_norm = name.endswith("weight") and len(shape) == 1
        tensors[name] = torch.randn(shape, generator=generator) * std + is_norm
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    write_checkpoint(path, tensors, raw, "bin", tokenizer=False)
    weights = {name: tensor.float() for name, tensor in tensors.items()}

    def embeddings(images: Sequence[Image.Image]) -> list[torch.Tensor]:
        mean, deviation = map(torch.tensor, CLIP)
        resized = [np.asarray(image.resize((72, 72), Image.Resampling.BICUBIC)) / 255 for image in images]
        pixels = torch.from_numpy(np.stack(resized)).float().sub(mean).div(deviation).permute(0, 3, 1, 2)
        return list(qwen_vl.embeddings(VISUAL, weights, pixels))

    def half(images: Sequence[Image.Image]) -> list[torch.Tensor]:
        with RoundedResults(getattr(torch, dtype)):
            return embeddings(images)

    def greedy(prompt: Sequence[int | Image.Image], count: int) -> list[int]:
        table, tokens = weights["transformer.wte.weight"], []
        parts = [table[[part]] if isinstance(part, int) else embeddings([part])[0] for part in prompt]
        vectors = torch.cat(parts)
        for _ in range(count):
            tokens.append(int(qwen.logits_of(raw, weights, vectors, alpha=1.0)[-1].argmax()))
            vectors = torch.cat((vectors, table[tokens[-1:]]))
        return tokens

    return VisionReference(path, embeddings, half, greedy)


def _visual_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv1.weight": (WIDTH, 3, 4, 4), "positional_embedding": (256, WIDTH), "proj": (SIZE, SIZE),
        "attn_pool.query": (QUERIES, SIZE), "attn_pool.pos_embed": (QUERIES, SIZE),
        "attn_pool.kv_proj.weight": (SIZE, WIDTH), "attn_pool.attn.in_proj_weight": (3 * SIZE, SIZE),
        "attn_pool.attn.in_proj_bias": (3 * SIZE,),
    }  # fmt: skip
    linear = {"attn_pool.attn.out_proj": (SIZE, SIZE)}
    norms = {"ln_pre": WIDTH, "ln_post": SIZE, "attn_pool.ln_q": SIZE, "attn_pool.ln_kv": SIZE}
    for layer in range(LAYERS):
        block = f"transformer.resblocks.{layer}."
        linear |= {block + "attn.in_proj": (3 * WIDTH, WIDTH), block + "attn.out_proj": (WIDTH, WIDTH),
                   block + "mlp.c_fc": (INNER, WIDTH), block + "mlp.c_proj": (WIDTH, INNER)}  # fmt: skip
        norms |= {block + "ln_1": WIDTH, block + "ln_2": WIDTH}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {qwen_vl.PREFIX + name: shape for name, shape in shapes.items()}


def _language_shapes(vocab_size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (vocab_size, SIZE), "lm_head.weight": (vocab_size, SIZE),
        "transformer.ln_f.weight": (SIZE,),
    }  # fmt: skip
    for layer in range(LAYERS):
        block = f"transformer.h.{layer}."
        shapes |= {
            block + "ln_1.weight": (SIZE,), block + "ln_2.weight": (SIZE,), block + "attn.c_attn.weight": (3 * SIZE, SIZE),
            block + "attn.c_attn.bias": (3 * SIZE,), block + "attn.c_proj.weight": (SIZE, SIZE),
            block + "mlp.w1.weight": (128, SIZE), block + "mlp.w2.weight": (128, SIZE), block + "mlp.c_proj.weight": (SIZE, 128),
        }  # fmt: skip
    return shapes
