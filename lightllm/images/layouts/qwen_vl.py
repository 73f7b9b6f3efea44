"""Qwen-VL and Qwen-VL-Chat: every image is 448 x 448, and the resampler makes 256 tokens of it.

A prompt has `<img>NAME</img>`; the tokens of the name, if there is one, give way to the image's.
"""

from __future__ import annotations

import re

from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, positive

TOKENS = 256
"""Queries of the resampler (`n_queries`); config.json names them only where there are others."""


def layout(folder: VisionFolder) -> Layout:
    visual = folder.config.get("visual") or {}
    tokens = positive(visual.get("n_queries", TOKENS), "visual.n_queries")
    begin = positive(visual.get("image_start_id", folder.token_id("<img>")), "visual.image_start_id")
    return Layout(
        "qwen_vl", "<img></img>", lambda width, height, detail: Footprint(tokens),
        folder.fingerprint("qwen_vl", visual.get("image_size"), tokens),
        # the published tokenizer numbers <img>, </img>, <imgpad> in this order
        written="<img></img>", begin=begin, end=begin + 1, pattern=re.compile(r"<img>.*?</img>", re.DOTALL),
    )  # fmt: skip
