"""Small random checkpoints of vision-language models in their published formats, and transformers' embeddings of images.

model = make_vision_model(tmp_path, "llava, original")
model.embeddings(random_images(2))      # of each image float32 [tokens, hidden]
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from support.model_zoo import RoundedResults, in_dtype, randomise, write_checkpoint

ODD_SIZES = [(57, 43), (33, 91), (120, 31), (70, 70)]
TEXT: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 12, "max_position_embeddings": 256,
}  # fmt: skip
"""Of the language model, of which only the hidden size counts."""
ENCODER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 7,
}  # fmt: skip

Encode = Callable[[Sequence[Image.Image]], list[torch.Tensor]]
Tensors = dict[str, torch.Tensor]
Config = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class VisionCase:
    make: Callable[[], tuple[Any, Any]]
    """transformers' config and image processor."""
    repack: Callable[[Tensors, Config, Path], tuple[Tensors, Config]] | None = None
    """From transformers' tensors and config.json to the published ones, which lie in the folder."""
    weight_format: str = "safetensors"
    has_processor: bool = True
    """The published checkpoint has a file of the processor."""


@dataclasses.dataclass(frozen=True)
class VisionReference:
    path: Path
    embeddings: Encode
    """In float32."""
    half: Encode
    """The same computed in the checkpoint's dtype."""


def random_images(count: int) -> list[Image.Image]:
    """Of different odd sizes, smooth enough for resizing to leave something of them."""
    made = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        made.append(Image.fromarray(small).resize(ODD_SIZES[number], Image.Resampling.BICUBIC))
    return made


def make_vision_model(path: Path, name: str, dtype: str = "float32", std: float = 0.1) -> VisionReference:
    """Writes the checkpoint; std: of its weights."""
    from transformers import AutoModelForImageTextToText

    if name in OWN_REFERENCES:
        return OWN_REFERENCES[name](path, dtype, std)
    case = CASES[name]
    config, processor = case.make()
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model, getattr(torch, dtype), std)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    raw = {**json.loads(config.to_json_string(use_diff=False)), "dtype": dtype}
    path.mkdir(parents=True, exist_ok=True)
    if case.repack is not None:
        tensors, raw = case.repack(tensors, raw, path)
    write_checkpoint(path, tensors, raw, case.weight_format)
    if case.has_processor:
        processor.save_pretrained(path)
    return VisionReference(
        path,
        lambda images: _embeddings(model, processor, images),
        lambda images: _embeddings(in_dtype(model, getattr(torch, dtype)), processor, images),
    )


@torch.inference_mode()
def _embeddings(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[torch.Tensor]:
    inputs = processor(images=list(images), return_tensors="pt")
    known = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    known["pixel_values"] = known["pixel_values"].to(next(model.parameters()).dtype)
    features = model.get_image_features(**known)
    if "num_patches" in inputs:
        return [
            tiles.flatten(0, 1).float()
            for tiles in features.pooler_output.split(inputs["num_patches"].tolist())
        ]
    levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
    return [torch.cat(parts, dim=-1).float() for parts in zip(*levels, strict=True)]


def renamed(tensors: Tensors, *rules: tuple[str, str]) -> Tensors:
    """Names that begin with a rule's expression get its replacement; the first that fits counts."""
    result = {}
    for name, tensor in tensors.items():
        rule = next((rule for rule in rules if re.match(rule[0], name)), ("", ""))
        result[re.sub("^" + rule[0], rule[1], name)] = tensor
    return result


# -- LLaVA-1.5


def llava(padded: bool = False) -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size, crop_size = {"shortest_edge": 28}, {"height": 28, "width": 28}
    if padded:
        processor = LlavaImageProcessorPil(size=size, crop_size=crop_size, do_pad=True)
    else:
        processor = CLIPImageProcessorPil(size=size, crop_size=crop_size)
    return LlavaConfig(vision_config=CLIPVisionConfig(**ENCODER), text_config=LlamaConfig(**TEXT)), processor


def converted_llava(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Of llava-hf."""
    return renamed(
        tensors, (r"model\.vision_tower\.", "vision_tower.vision_model."), (r"model\.multi", "multi"),
        (r"model\.language_model\.", "language_model.model."), ("lm_head", "language_model.lm_head"),
    ), raw  # fmt: skip


def original_llava(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Of liuhaotian, with the encoder in the same checkpoint."""
    (path / "clip").mkdir()
    (path / "clip" / "config.json").write_text(
        json.dumps({"model_type": "clip", "vision_config": raw["vision_config"]})
    )
    flat = {**raw["text_config"], "dtype": raw["dtype"], "model_type": "llava", "mm_vision_tower": "clip",
            "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
            "mm_hidden_size": 32, "image_aspect_ratio": "pad", "architectures": ["LlavaLlamaForCausalLM"]}  # fmt: skip
    return renamed(
        tensors, (r"model\.vision_tower\.", "model.vision_tower.vision_tower.vision_model."),
        (r"model\.multi_modal_projector\.linear_1", "model.mm_projector.0"),
        (r"model\.multi_modal_projector\.linear_2", "model.mm_projector.2"), (r"model\.language_model\.", "model."),
    ), flat  # fmt: skip


def original_llava_beside_clip(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Of liuhaotian, with the encoder in the checkpoint of CLIP that `mm_vision_tower` names, beside CLIP's text encoder."""
    tensors, raw = original_llava(tensors, raw, path)
    prefix = "model.vision_tower.vision_tower."
    clip = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    clip |= {"text_model.final_layer_norm.weight": torch.ones(3), "logit_scale": torch.ones(())}
    torch.save(clip, path / "clip" / "pytorch_model.bin")
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(prefix)}, raw


# -- Qwen2-VL and later

SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}


def qwen(model_type: str, patch_size: int = 6, **vision: Any) -> tuple[Any, Any]:
    from transformers import AutoConfig
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    vision = {"depth": 3, "num_heads": 2, "patch_size": patch_size, **vision}
    text = {**TEXT, "rope_parameters": SECTIONS}
    processor = Qwen2VLImageProcessorPil(patch_size=patch_size, min_pixels=144, max_pixels=144 * 60)
    return AutoConfig.for_model(model_type, vision_config=vision, text_config=text), processor


def qwen2_vl() -> tuple[Any, Any]:
    return qwen("qwen2_vl", embed_dim=32, mlp_ratio=2, hidden_size=TEXT["hidden_size"])


def qwen2_5_vl() -> tuple[Any, Any]:
    """Windows of 3 x 3 tokens."""
    return qwen(
        "qwen2_5_vl", hidden_size=32, intermediate_size=48, out_hidden_size=TEXT["hidden_size"], window_size=36,
        fullatt_block_indexes=[1],
    )  # fmt: skip


def qwen3_vl() -> tuple[Any, Any]:
    return qwen(
        "qwen3_vl", hidden_size=32, intermediate_size=48, out_hidden_size=TEXT["hidden_size"],
        num_position_embeddings=25, deepstack_visual_indexes=[0, 1],
    )  # fmt: skip


def published_qwen2_vl(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    flat = {**raw["text_config"], "model_type": raw["model_type"], "dtype": raw["dtype"]}
    names = {"embed_dim", "depth", "num_heads", "hidden_size", "mlp_ratio", "patch_size", "temporal_patch_size",
             "intermediate_size", "out_hidden_size", "window_size", "fullatt_block_indexes"}  # fmt: skip
    flat["vision_config"] = {name: value for name, value in raw["vision_config"].items() if name in names}
    return renamed(tensors, (r"model\.visual", "visual"), (r"model\.language_model", "model")), flat


# -- Gemma 3


def gemma3() -> tuple[Any, Any]:
    """Squares of 2 x 2 patches become one token."""
    from transformers import Gemma3Config
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    vision = {"model_type": "siglip_vision_model", **ENCODER, "vision_use_head": False}
    config = Gemma3Config(vision_config=vision, text_config=TEXT, mm_tokens_per_image=4)
    return config, Gemma3ImageProcessorPil(size={"height": 28, "width": 28})


def published_gemma3(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    return renamed(
        tensors, (r"model\.vision_tower\.", "vision_tower.vision_model."), (r"model\.multi", "multi"),
        (r"model\.language_model\.", "language_model.model."), ("lm_head", "language_model.lm_head"),
    ), raw  # fmt: skip


# -- InternVL


def internvl(max_tiles: int = 6, **vision: Any) -> tuple[Any, Any]:
    from transformers import InternVLConfig, InternVLVisionConfig, Qwen2Config
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    encoder = InternVLVisionConfig(**{**ENCODER, "attention_bias": True, **vision})
    processor = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=max_tiles,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    return InternVLConfig(vision_config=encoder, text_config=Qwen2Config(**TEXT)), processor


def internvit_6b() -> tuple[Any, Any]:
    return internvl(norm_type="rms_norm", use_qk_norm=True, attention_bias=False)


def published_internvit_6b(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Its config.json is silent where the model's own code has the value by default."""
    tensors, raw = published_internvl(tensors, raw, path)
    silent = {"norm_type", "qk_normalization", "qkv_bias"}
    raw["vision_config"] = {name: value for name, value in raw["vision_config"].items() if name not in silent}
    return tensors, raw


def published_internvl(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Of OpenGVLab: the names of the model's own code."""
    tensors = renamed(
        tensors,
        (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
        (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
        (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
        (r"model\.vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"model\.multi_modal_projector\.layer_norm", "mlp1.0"), (r"model\.multi_modal_projector\.linear_1", "mlp1.1"),
        (r"model\.multi_modal_projector\.linear_2", "mlp1.3"), (r"model\.language_model", "language_model.model"),
    )  # fmt: skip
    parts = (("attention.projection_layer", "attn.proj"), ("attention.", "attn."), ("layernorm_before", "norm1"),
             ("layernorm_after", "norm2"), ("lambda_", "ls"))  # fmt: skip
    published: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith("vision_model.encoder"):
            for theirs, ours in parts:
                name = name.replace(theirs, ours)
        published[name] = tensor
    for name in [name for name in published if ".q_proj." in name and name.startswith("vision_model")]:
        names = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        published[name.replace(".q_proj.", ".qkv.")] = torch.cat([published.pop(each) for each in names])
    vision = raw["vision_config"]
    own = {name: vision[name] for name in ENCODER | {"hidden_act": 0, "layer_norm_eps": 0, "norm_type": 0}}
    own |= {"image_size": 28, "patch_size": 7, "model_type": "intern_vit_6b", "qk_normalization": vision["use_qk_norm"],
            "qkv_bias": vision["attention_bias"]}  # fmt: skip
    return published, {
        "model_type": "internvl_chat", "dtype": raw["dtype"], "vision_config": own, "llm_config": raw["text_config"],
        "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": 28, "max_dynamic_patch": 6,
        "min_dynamic_patch": 1, "use_thumbnail": True, "dynamic_image_size": True,
    }  # fmt: skip


# -- Qwen-VL


def qwen_vl(path: Path, dtype: str, std: float) -> VisionReference:
    from models.references import qwen_vl

    width, inner, size, queries, layers = 32, 64, 256, 9, 2
    visual = {"width": width, "layers": layers, "heads": 4, "mlp_ratio": 2.0, "output_dim": size, "patch_size": 4,
              "image_size": 72, "n_queries": queries}  # fmt: skip
    shapes = {"conv1.weight": (width, 3, 4, 4), "positional_embedding": (256, width), "proj": (size, size),
              "attn_pool.query": (queries, size), "attn_pool.pos_embed": (queries, size),
              "attn_pool.kv_proj.weight": (size, width), "attn_pool.attn.in_proj_weight": (3 * size, size),
              "attn_pool.attn.in_proj_bias": (3 * size,)}  # fmt: skip
    linear = {"attn_pool.attn.out_proj": (size, size)}
    norms = {"ln_pre": width, "ln_post": size, "attn_pool.ln_q": size, "attn_pool.ln_kv": size}
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}."
        linear |= {block + "attn.in_proj": (3 * width, width), block + "attn.out_proj": (width, width),
                   block + "mlp.c_fc": (inner, width), block + "mlp.c_proj": (width, inner)}  # fmt: skip
        norms |= {block + "ln_1": width, block + "ln_2": width}
    for name, shape in linear.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name, width in norms.items():
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {"transformer.wte.weight": torch.zeros(384, size)}
    for name, shape in shapes.items():
        is_norm = name.endswith("weight") and len(shape) == 1
        tensors[qwen_vl.PREFIX + name] = torch.randn(shape, generator=generator) * std + is_norm
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    write_checkpoint(path, tensors, {"model_type": "qwen", "torch_dtype": dtype, "visual": visual}, "bin")
    weights = {name: tensor.float() for name, tensor in tensors.items()}

    def embeddings(images: Sequence[Image.Image]) -> list[torch.Tensor]:
        mean, std = (
            torch.tensor([0.48145466, 0.4578275, 0.40821073]),
            torch.tensor([0.26862954, 0.26130258, 0.27577711]),
        )
        resized = [np.asarray(image.resize((72, 72), Image.Resampling.BICUBIC)) / 255 for image in images]
        pixels = torch.from_numpy(np.stack(resized)).float().sub(mean).div(std).permute(0, 3, 1, 2)
        return list(qwen_vl.embeddings(visual, weights, pixels))

    def half(images: Sequence[Image.Image]) -> list[torch.Tensor]:
        with RoundedResults(getattr(torch, dtype)):
            return embeddings(images)

    return VisionReference(path, embeddings, half)


OWN_REFERENCES: dict[str, Callable[[Path, str, float], VisionReference]] = {"qwen-vl": qwen_vl}
"""What has a plain torch reference in `test/models/references/`."""

CASES = {
    "llava": VisionCase(llava),
    "llava, converted": VisionCase(llava, converted_llava),
    "llava, original": VisionCase(lambda: llava(padded=True), original_llava, "bin", has_processor=False),
    "llava, beside clip": VisionCase(
        lambda: llava(padded=True), original_llava_beside_clip, has_processor=False
    ),
    "qwen2-vl": VisionCase(qwen2_vl),
    "qwen2-vl, published": VisionCase(qwen2_vl, published_qwen2_vl),
    "qwen2.5-vl": VisionCase(qwen2_5_vl),
    "qwen2.5-vl, published": VisionCase(qwen2_5_vl, published_qwen2_vl, "bin"),
    "qwen3-vl": VisionCase(qwen3_vl),
    "gemma3": VisionCase(gemma3),
    "gemma3, published": VisionCase(gemma3, published_gemma3),
    "internvl": VisionCase(internvl),
    "internvl, published": VisionCase(internvl, published_internvl, has_processor=False),
    "internvit-6b": VisionCase(internvit_6b, published_internvit_6b, has_processor=False),
}

NAMES = [*CASES, *OWN_REFERENCES]
