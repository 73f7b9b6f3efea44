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

from support.model_zoo import calm, in_dtype, randomise, write_checkpoint
from support.published_formats import to_internlm2
from support.vision_prompts import write_vision_tokenizer

VOCAB = 448
ODD_SIZES = [(57, 43), (33, 91), (120, 31), (70, 70)]
TEXT: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
"""Of the language model."""
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
    greedy: Callable[[Sequence[int | Image.Image], int], list[int]]
    """Prompt, number of tokens -> the tokens that follow, whichever they are; in float32."""


def random_images(count: int) -> list[Image.Image]:
    """Of different odd sizes, smooth enough for resizing to leave something of them."""
    made = []
    for number in range(count):
        small = np.random.default_rng(number).integers(0, 256, (6, 5, 3), dtype=np.uint8)
        made.append(Image.fromarray(small).resize(ODD_SIZES[number], Image.Resampling.BICUBIC))
    return made


def make_vision_model(path: Path, name: str, dtype: str = "float32", std: float = 0.1) -> VisionReference:
    """Writes the checkpoint; std: of its weights. At 0.1 rounding stays small enough to be compared, at 0.2 the language model
    answers to different prompts with different tokens."""
    from transformers import AutoModelForImageTextToText

    if name in OWN_REFERENCES:
        return OWN_REFERENCES[name](path, dtype, std)
    case = CASES[name]
    config, processor = case.make()
    config.image_token_id = write_vision_tokenizer(path, name, VOCAB)
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model, getattr(torch, dtype), std)
    calm(model)
    tensors = {name: tensor.to(getattr(torch, dtype)) for name, tensor in model.state_dict().items()}
    raw = {**json.loads(config.to_json_string(use_diff=False)), "dtype": dtype}
    if config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    if case.repack is not None:
        tensors, raw = case.repack(tensors, raw, path)
    write_checkpoint(path, tensors, raw, case.weight_format, tokenizer=False)
    if case.has_processor:
        processor.save_pretrained(path)
    return VisionReference(
        path,
        lambda images: _embeddings(model, processor, images),
        lambda images: _embeddings(in_dtype(model, getattr(torch, dtype)), processor, images),
        lambda prompt, count: _greedy(model, processor, prompt, count),
    )


@torch.inference_mode()
def _embeddings(model: Any, processor: Any, images: Sequence[Image.Image]) -> list[torch.Tensor]:
    inputs = processor(images=list(images), return_tensors="pt")
    features = model.get_image_features(**_pixels(model, inputs))
    if "num_patches" in inputs:
        return [
            tiles.flatten(0, 1).float()
            for tiles in features.pooler_output.split(inputs["num_patches"].tolist())
        ]
    levels = [features.pooler_output, *(getattr(features, "deepstack_features", None) or [])]
    return [torch.cat(parts, dim=-1).float() for parts in zip(*levels, strict=True)]


def _pixels(model: Any, inputs: Any) -> dict[str, torch.Tensor]:
    known = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    return {**known, "pixel_values": known["pixel_values"].to(next(model.parameters()).dtype)}


@torch.inference_mode()
def _greedy(model: Any, processor: Any, prompt: Sequence[int | Image.Image], count: int) -> list[int]:
    images = [part for part in prompt if isinstance(part, Image.Image)]
    lengths = iter([len(embedding) for embedding in _embeddings(model, processor, images)] if images else [])
    token = model.config.image_token_id
    parts = [[part] if isinstance(part, int) else [token] * next(lengths) for part in prompt]
    ids = torch.tensor([sum(parts, [])])
    inputs: dict[str, torch.Tensor] = {}
    if images:
        inputs = _pixels(model, processor(images=images, return_tensors="pt"))
        types = {"gemma3": "token_type_ids", "llava": "", "internvl": ""}.get(
            model.config.model_type, "mm_token_type_ids"
        )
        inputs |= {types: (ids == token).int()} if types else {}
    made = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        pad_token_id=0, **inputs,
    )  # fmt: skip
    return made[0, ids.shape[1] :].tolist()


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

SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


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
    del flat["rope_parameters"]
    flat |= {
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": SECTIONS["mrope_section"]},
    }
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
    text = {**TEXT, "num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 24,
            "query_pre_attn_scalar": 16}  # fmt: skip
    config = Gemma3Config(vision_config=vision, text_config=text, mm_tokens_per_image=4)
    return config, Gemma3ImageProcessorPil(size={"height": 28, "width": 28})


def published_gemma3(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    return renamed(
        tensors, (r"model\.vision_tower\.", "vision_tower.vision_model."), (r"model\.multi", "multi"),
        (r"model\.language_model\.", "language_model.model."), ("lm_head", "language_model.lm_head"),
    ), raw  # fmt: skip


# -- InternVL


def internvl(text: str = "qwen2", **vision: Any) -> tuple[Any, Any]:
    """text: `model_type` of the language model in transformers."""
    from transformers import AutoConfig, InternVLConfig, InternVLVisionConfig
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    encoder = InternVLVisionConfig(**{**ENCODER, "attention_bias": True, **vision})
    processor = GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=6,
        image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
    )  # fmt: skip
    language = AutoConfig.for_model(text, **TEXT)
    return InternVLConfig(vision_config=encoder, text_config=language, tie_word_embeddings=False), processor


def internvit_6b() -> tuple[Any, Any]:
    return internvl(norm_type="rms_norm", use_qk_norm=True, attention_bias=False)


def published_internvit_6b(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Its config.json is silent where the model's own code has the value by default."""
    tensors, raw = published_internvl(tensors, raw, path)
    silent = {"norm_type", "qk_normalization", "qkv_bias"}
    raw["vision_config"] = {name: value for name, value in raw["vision_config"].items() if name not in silent}
    return tensors, raw


_LANGUAGE = re.compile(r"model\.language_model\.|lm_head\.")


def published_internvl(tensors: Tensors, raw: Config, path: Path) -> tuple[Tensors, Config]:
    """Of OpenGVLab: the names of the model's own code, and of its language model's."""
    language = renamed(
        {name: tensor for name, tensor in tensors.items() if _LANGUAGE.match(name)},
        (r"model\.language_model", "model"),
    )
    text = raw["text_config"]
    if text["model_type"] == "llama":
        language, text = to_internlm2(language, text)
    tensors = renamed(
        {name: tensor for name, tensor in tensors.items() if not _LANGUAGE.match(name)},
        (r"model\.vision_tower\.embeddings\.cls_token", "vision_model.embeddings.class_embedding"),
        (r"model\.vision_tower\.embeddings\.position_embeddings", "vision_model.embeddings.position_embedding"),
        (r"model\.vision_tower\.embeddings\.patch_embeddings\.projection", "vision_model.embeddings.patch_embedding"),
        (r"model\.vision_tower\.encoder\.layer\.", "vision_model.encoder.layers."),
        (r"model\.multi_modal_projector\.layer_norm", "mlp1.0"), (r"model\.multi_modal_projector\.linear_1", "mlp1.1"),
        (r"model\.multi_modal_projector\.linear_2", "mlp1.3"),
    )  # fmt: skip
    tensors |= {f"language_model.{name}": tensor for name, tensor in language.items()}
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
        "model_type": "internvl_chat", "dtype": raw["dtype"], "vision_config": own, "llm_config": text,
        "downsample_ratio": 0.5, "ps_version": "v2", "select_layer": -1, "force_image_size": 28, "max_dynamic_patch": 6,
        "min_dynamic_patch": 1, "use_thumbnail": True, "dynamic_image_size": True,
    }  # fmt: skip


# -- Qwen-VL


def qwen_vl(path: Path, dtype: str, std: float) -> VisionReference:
    from support.qwen_vl import make_qwen_vl

    return make_qwen_vl(path, dtype, std)


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
    "internvl, internlm2": VisionCase(lambda: internvl("llama"), published_internvl, has_processor=False),
    "internvl, phi3": VisionCase(lambda: internvl("phi3"), published_internvl, has_processor=False),
    "internvit-6b": VisionCase(internvit_6b, published_internvit_6b, has_processor=False),
}

NAMES = [*CASES, *OWN_REFERENCES]
