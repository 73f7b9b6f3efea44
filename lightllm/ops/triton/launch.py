"""How a kernel is launched: block sizes and warps from the configuration files, and programmatic dependent launch.

`configs/default.json` holds a choice for every kernel; `configs/<GPU name>.json` one for the GPU that it was tuned on
(`tools/tune_kernels.py`). Nothing is tuned at start-up.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CONFIGS = Path(__file__).parent / "configs"
DEFAULT = "default"
PDL_VARIABLE = "LIGHTLLM_PDL"


def launch_config(kernel: str, device: torch.device, **sizes: int) -> dict[str, int]:
    """Block sizes (upper case: constexprs) and options (num_warps, num_stages) for a problem of these sizes.

    A kernel's entries are looked through in order, those of this GPU's file before the defaults: the first one all of
    whose `up_to` bounds hold is taken.
    The result is shared: do not change it.
    """
    return _find(kernel, gpu_name(device), **sizes)


_fixed: dict[str, dict[str, int]] = {}


@contextlib.contextmanager
def fixed_config(kernel: str, config: dict[str, int]) -> Iterator[None]:
    """Within it `launch_config` gives this configuration for the kernel: how candidates are measured."""
    _fixed[kernel] = config
    _find.cache_clear()
    try:
        yield
    finally:
        del _fixed[kernel]
        _find.cache_clear()


@functools.cache
def _find(kernel: str, gpu: str, **sizes: int) -> dict[str, int]:
    if kernel in _fixed:
        return _fixed[kernel]
    return select_entry(read_configs(gpu).get(kernel, []) + read_configs(DEFAULT)[kernel], sizes)


def select_entry(entries: list[dict[str, Any]], sizes: dict[str, int]) -> dict[str, int]:
    """The first entry that holds for `sizes`, without its bounds. Raises `LookupError` if none does."""
    for entry in entries:
        if all(sizes[name] <= bound for name, bound in entry.get("up_to", {}).items()):
            return {name: value for name, value in entry.items() if name != "up_to"}
    raise LookupError(f"no kernel configuration holds for {sizes}")


@functools.cache
def read_configs(gpu: str) -> dict[str, list[dict[str, Any]]]:
    """The entries of every kernel in one file; none if there is no file for this GPU."""
    return _read(gpu).get("kernels", {})


@functools.cache
def _read(gpu: str) -> dict[str, Any]:
    path = CONFIGS / f"{gpu}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


@functools.cache
def gpu_name(device: torch.device) -> str:
    """Name of a GPU's configuration file, e.g. "NVIDIA_H200"; that of the defaults where kernels are interpreted."""
    if device.type != "cuda":
        return DEFAULT
    return torch.cuda.get_device_name(device).replace(" ", "_")


_launched: dict[tuple[Any, ...], Any] = {}
"""(kernel, device, its specialisation, options) -> what Triton compiled for it."""


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """`kernel[grid](*arguments, **options)`, in a third of the host's time for what has been launched before: kernels of every
    layer are launched so. Triton's own code says which variant the arguments need (its `binder`); its look-ups of settings
    in the environment, and hooks of profilers that watch launches, are left out."""
    if not isinstance(kernel, JITFunction):  # interpreted
        kernel[grid](*arguments, **options)
        return
    device = driver.active.get_current_device()
    bound, specialization, given = kernel.device_caches[device][-1](*arguments, **options)
    key = (id(kernel), device, tuple(specialization), tuple(given.items()))
    compiled = _launched.get(key)
    if compiled is None:
        _launched[key] = kernel[grid](*arguments, **options)
        return
    x, y, z = (*grid, 1, 1)[:3]
    stream = driver.active.get_current_stream(device)
    compiled.run(
        x, y, z, stream, compiled.function, compiled.packed_metadata, None, None, None, *bound.values()
    )


@functools.cache
def pdl_options(device: torch.device) -> dict[str, bool]:
    """Programmatic dependent launch, from compute capability 9.0 on: the next kernel starts while this one ends.

    A kernel that takes `PDL` waits (`gdc_wait`) before it touches what an earlier kernel may still be writing or
    reading, and lets its successor start (`gdc_launch_dependents`); what it may do before that is load weights.
    `"pdl": false` in a GPU's configuration file turns it off there, `LIGHTLLM_PDL=0` in the environment everywhere.
    """
    if os.environ.get(PDL_VARIABLE, "1") == "0":
        return {"PDL": False}
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < 9:
        return {"PDL": False}
    if not _read(gpu_name(device)).get("pdl", True):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


def cdiv(number: int, size: int) -> int:
    """As Triton's, which takes microseconds on the host: it unwraps constexprs."""
    return -(-number // size)


def next_power_of_2(number: int) -> int:
    """The smallest that is not less; of 0: 1."""
    return 1 << max(number - 1, 0).bit_length()
