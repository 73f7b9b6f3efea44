"""file:// URLs reach files below one folder and nothing else."""

import dataclasses
import os
from pathlib import Path

import pytest
from support.media_server import LIMITS

from lightllm.errors import InvalidImage
from lightllm.images.limits import ImageLimits
from lightllm.images.local_files import read_local_file


@pytest.fixture
def limits(tmp_path: Path) -> ImageLimits:
    root = tmp_path / "media"
    (root / "sub dir").mkdir(parents=True)
    (root / "sub dir/a.png").write_bytes(b"image")
    (root / "large.png").write_bytes(b"x" * (LIMITS.max_bytes + 1))
    (root / "inside.png").symlink_to(root / "sub dir/a.png")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "media-2").mkdir()
    (tmp_path / "media-2/a.png").write_bytes(b"secret")
    (root / "link.png").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    return dataclasses.replace(LIMITS, local_path=str(root))


@pytest.mark.parametrize("path", ["sub%20dir/a.png", "sub dir/a.png", "sub dir/../inside.png", "inside.png"])
def test_files_below_the_folder_are_read(limits: ImageLimits, path: str) -> None:
    for host in ("", "localhost"):
        assert read_local_file(f"file://{host}{limits.local_path}/{path}", limits, "here") == b"image"


@pytest.mark.parametrize(
    "path", ["../secret", "..%2Fsecret", "%2e%2e/secret", "link.png", "folder/secret", "../media-2/a.png", "../nothing", "folder/no"]
)  # fmt: skip
def test_nothing_outside_is_read_and_nothing_told_of_it(limits: ImageLimits, path: str) -> None:
    with pytest.raises(
        InvalidImage, match=r"^here: only files below --allowed_local_media_path are read, links followed$"
    ):
        read_local_file(f"file://{limits.local_path}/{path}", limits, "here")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing.png", "cannot be read"), ("sub dir", "cannot be read"), ("pipe", "no regular file"),
        ("large.png", r"100001 bytes, at most 100000"), ("a%00.png", "must read file:///"), ("a%ff.png", "no valid URL"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said(limits: ImageLimits, path: str, message: str) -> None:
    with pytest.raises(InvalidImage, match=message):
        read_local_file(f"file://{limits.local_path}/{path}", limits, "here")


@pytest.mark.parametrize("url", ["file://server/share/a.png", "file:a.png", "file://[::1/a.png"])
def test_other_machines_and_relative_paths_are_refused(limits: ImageLimits, url: str) -> None:
    with pytest.raises(InvalidImage, match="must read file:///|no valid URL"):
        read_local_file(url, limits, "here")


def test_without_the_option_no_file_is_read(limits: ImageLimits) -> None:
    with pytest.raises(InvalidImage, match="this server reads no file URLs"):
        read_local_file(f"file://{limits.local_path}/inside.png", LIMITS, "here")
