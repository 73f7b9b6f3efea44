"""Tells whether two machines hold the same model, without reading the weights. Loads no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

_WEIGHTS = ("*.safetensors", "*.bin")


def model_fingerprint(model_dir: str) -> str:
    """Of config.json, and of names and sizes of the weight files: 16 hexadecimal digits."""
    folder = Path(model_dir)
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=8)
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        digest.update(f"\n{path.name} {path.stat().st_size}".encode())
    return digest.hexdigest()
