"""Gemma 3: every image is 896 x 896, pooled to 256 tokens that attend to each other in both directions.

The processor's pan and scan (crops of long images, off by default) is not offered.
"""

from __future__ import annotations

from lightllm.images.layouts.layout import Footprint, Layout, VisionFolder, positive

MARKER = "<start_of_image>"


def layout(folder: VisionFolder) -> Layout:
    tokens = positive(folder.config.get("mm_tokens_per_image", 256), "mm_tokens_per_image")
    return Layout(
        "gemma3", MARKER, lambda width, height, detail: Footprint(tokens), folder.fingerprint("gemma3", tokens),
        written=f"\n\n{MARKER}<image_soft_token><end_of_image>\n\n",
        placeholder=folder.id_of("<image_soft_token>", "image_token_index", "image_token_id"),
        bidirectional=True,
    )  # fmt: skip
