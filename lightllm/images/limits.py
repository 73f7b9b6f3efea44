"""What an image may cost the server, from the options."""

from __future__ import annotations

import dataclasses
import os

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption


@dataclasses.dataclass(frozen=True)
class ImageLimits:
    max_bytes: int
    """Of one encoded image."""
    max_pixels: int
    """Width x height of one image."""
    max_images: int
    """Of one request."""
    fetch_timeout: float
    """Seconds from the beginning of a download to its end, redirects included."""
    allowed_domains: tuple[str, ...] | None
    """Lower case; None: any with public addresses."""
    local_path: str | None
    """Folder that file URLs may name files of."""
    max_bytes_together: int = 128 << 20
    """Of the encoded images of one request."""

    @classmethod
    def of(cls, config: ServerConfig) -> ImageLimits:
        """Raises `InvalidOption` if --allowed_local_media_path is no folder."""
        domains, local = config.allowed_media_domains, config.allowed_local_media_path
        if local is not None and not os.path.isdir(local):
            raise InvalidOption(f"--allowed_local_media_path {local} is no folder.")
        return cls(
            max_bytes=config.max_image_mb << 20,
            max_pixels=config.max_image_pixels,
            max_images=config.max_images,
            fetch_timeout=config.image_fetch_timeout,
            allowed_domains=None if domains is None else tuple(d.lower().strip("[].") for d in domains),
            local_path=local,
            max_bytes_together=max(config.max_images_mb, config.max_image_mb) << 20,
        )
