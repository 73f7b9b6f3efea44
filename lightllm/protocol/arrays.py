"""How numpy arrays travel inside msgspec messages: (dtype, shape, little-endian bytes)."""

from __future__ import annotations

from typing import Any

import numpy as np

_DTYPES = {name: np.dtype(name) for name in ("<i4", "<i8", "<f4", "<f8", "|u1")}

Array = np.ndarray
"""Annotation of an array field. On the wire: `(dtype, shape, bytes)`; decoded arrays are read-only views."""


def encode_array(value: Any) -> Any:
    """msgspec `enc_hook`: arrays of the dtypes in the allow-list; anything else is a programming error."""
    if isinstance(value, np.ndarray):
        name = value.dtype.str
        if name not in _DTYPES:
            raise TypeError(f"an array of {value.dtype} cannot be sent; cast it to one of {sorted(_DTYPES)}")
        return (name, value.shape, np.ascontiguousarray(value).tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value)} cannot be sent")


def decode_array(kind: type, value: Any) -> Any:
    """msgspec `dec_hook`: the counterpart of `encode_array`."""
    if kind is not np.ndarray:
        raise TypeError(f"{kind} cannot be received")
    name, shape, data = value
    if name not in _DTYPES:
        raise ValueError(f"unknown dtype {name!r} in a message")
    return np.frombuffer(data, dtype=_DTYPES[name]).reshape(shape)


def int32(values: Any) -> np.ndarray:
    """Shorthand: values as an int32 array."""
    return np.asarray(values, dtype=np.int32)


EMPTY_INT32 = np.zeros(0, dtype=np.int32)
EMPTY_FLOAT32 = np.zeros(0, dtype=np.float32)
