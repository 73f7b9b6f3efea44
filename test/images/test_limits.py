"""Limits come from the options, whose wrong values end the launch."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lightllm.config import MOST_PIXELS, ServerConfig
from lightllm.config_sources import verify
from lightllm.errors import InvalidOption, StartupError
from lightllm.images import check_installed
from lightllm.images.limits import ImageLimits


def test_options_become_limits(tmp_path: Path) -> None:
    config = verify(
        ServerConfig(
            allowed_media_domains=["CDN.example.org.", "[::1]"], allowed_local_media_path=str(tmp_path), max_image_mb=3,
            max_image_pixels=1000, max_images=2, max_images_mb=5, image_fetch_timeout=1.5,
        )
    )  # fmt: skip
    assert ImageLimits.of(config) == ImageLimits(
        3 << 20, 1000, 2, 1.5, ("cdn.example.org", "::1"), str(tmp_path), 5 << 20
    )
    assert ImageLimits.of(ServerConfig()).allowed_domains is None


@pytest.mark.parametrize(
    "options",
    [
        {"allowed_media_domains": ["https://a.example/"]}, {"allowed_media_domains": ["*.example"]}, {"max_image_mb": 0},
        {"max_image_pixels": 0}, {"max_image_pixels": MOST_PIXELS + 1},
        {"max_images": 0}, {"max_images_mb": 0}, {"image_fetch_timeout": 0.0},
    ],
)  # fmt: skip
def test_a_wrong_value_ends_the_launch_with_its_option(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidOption, match=f"^--{next(iter(options))} must be"):
        verify(ServerConfig(**options))


def test_a_local_path_that_is_no_folder_ends_the_launch() -> None:
    with pytest.raises(InvalidOption, match="^--allowed_local_media_path /nothing/here is no folder"):
        ImageLimits.of(ServerConfig(allowed_local_media_path="/nothing/here"))


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    check_installed()
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(StartupError, match=r"pillow, httpcore2.*pip install 'lightllm\[vision\]'"):
        check_installed()
