"""A pytest plugin: the kernels' tests believe that they run on a GPU. What would fail there because of devices fails here.

    PYTHONPATH=test TRITON_INTERPRET=1 python -m pytest -p support.pretended_gpu test/ops/triton

Of each test as many cases are run as it takes for every value of every parameter to occur: where tensors lie depends on
the way through the code, not on which sizes meet which dtypes.

Tensors that are made on "cuda" are marked; what is computed from marked ones is marked. Everything is computed by the CPU
and Triton's interpreter, but an operation on tensors of both kinds, a kernel that is given an unmarked one, and reading a
marked one's memory, raise as on a GPU. So does `==` between floats of two kernels, or of two variants of one: a GPU may multiply
and add with one rounding in one of them and with two in the other, which no interpreter does. Of a test that is marked `real_sizes` the launches are looked at and not computed: the
interpreter takes an hour for them.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map
from triton.runtime.interpreter import GridExecutor

import support.kernels
from support import covering

GPU = torch.device("cuda", 0)
_device_of = torch.Tensor.device.__get__  # type: ignore[attr-defined]
_COPIES = {"copy_", "to", "cpu", "cuda", "set_", "untyped_storage", "__setitem__", "__getitem__"}
"""May have tensors of both kinds, some with rules of their own below."""


def is_marked(value: object) -> bool:
    return isinstance(value, torch.Tensor) and getattr(value, "_on_gpu", False)


def mark(value: Any, marked: bool = True) -> Any:
    if isinstance(value, torch.Tensor):
        value._on_gpu = marked  # type: ignore[attr-defined]
    return value


def _names_gpu(device: Any) -> bool:
    return isinstance(device, int) or torch.device(device).type == "cuda"


class PretendedGpu(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        tensors = [value for value in tree_iter((args, kwargs)) if isinstance(value, torch.Tensor)]
        if name in ("to", "cpu", "cuda"):
            return _moved(func, name, args, kwargs)
        if name in ("numpy", "__array__") and is_marked(args[0]):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")
        wanted = kwargs.pop("device", None)
        marked = _names_gpu(wanted) if wanted is not None else any(map(is_marked, tensors))
        if wanted is not None:
            kwargs["device"] = "cpu"
        elif name in _COPIES:
            _check_index(name, args)
            marked = is_marked(args[0])
        elif name not in ("__get__", "__set__"):
            kinds = {is_marked(value) for value in tensors if value.dim() > 0}
            if len(kinds) > 1:
                raise RuntimeError(f"{name}: expected all tensors to be on the same device, cuda:0 and cpu")
        if name in ("equal", "eq", "__eq__"):
            _check_makers([value for value in tensors if value.is_floating_point()])
        result = func(*args, **kwargs)
        if marked:
            tree_map(mark, result)
        if name == "__getitem__" and hasattr(args[0], "_made_by") and isinstance(result, torch.Tensor):
            result._made_by = args[0]._made_by  # type: ignore[attr-defined]
        return result


def _check_makers(floats: list[torch.Tensor]) -> None:
    """Of different kernels, or one with other constexprs: equal here is no promise for a GPU."""
    makers = {value._made_by for value in floats if hasattr(value, "_made_by")}  # type: ignore[attr-defined]
    if len(makers) > 1:
        raise AssertionError(
            f"floats of {' and '.join(sorted(map(str, makers)))} need not have the same bits"
        )


def _moved(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """`to`, `cpu` and `cuda`: the dtype is what the CPU sees to, a move is a copy."""
    source, rest, there = args[0], [], is_marked(args[0])
    goal = {"cpu": False, "cuda": True}.get(name, there)
    for value in args[1:]:
        if isinstance(value, str | torch.device):
            goal = _names_gpu(value)
        elif isinstance(value, torch.Tensor):
            goal = is_marked(value)
            rest.append(value.dtype)
        else:
            rest.append(value)
    if kwargs.get("device") is not None:
        goal = _names_gpu(kwargs["device"])
    kwargs = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking")}
    result = torch.Tensor.to(source, *rest, **kwargs) if name == "to" and (rest or kwargs) else source
    if goal != there and result is source:
        result = source.clone()
    return mark(result, goal)


def _check_index(name: str, args: Any) -> None:
    """Indices on a CPU may choose from a tensor on a GPU, not the other way round; nor are values taken from the other."""
    if (
        name in ("__getitem__", "__setitem__")
        and not is_marked(args[0])
        and any(map(is_marked, tree_iter(args[1])))
    ):
        raise RuntimeError(
            "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
        )
    if name == "__setitem__" and isinstance(args[2], torch.Tensor) and args[2].dim() > 0:
        chosen = any(isinstance(index, torch.Tensor | list) for index in tree_iter(args[1]))
        if chosen and is_marked(args[2]) != is_marked(args[0]):
            raise RuntimeError("index_put_: expected self and value to be on the same device")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, left_out = covering.split(items)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_configure() -> None:
    support.kernels.DEVICE = torch.device("cuda")
    torch.Tensor.device = property(  # type: ignore[assignment,misc]
        lambda tensor: GPU if is_marked(tensor) else _device_of(tensor)
    )
    torch.Tensor.is_cuda = property(is_marked)  # type: ignore[assignment,misc,arg-type]
    _watch_assert_close()
    GridExecutor.__call__ = _launch  # type: ignore[method-assign]
    torch.Generator = CpuGenerator  # type: ignore[misc]
    torch.cuda.is_available = lambda: True  # type: ignore[assignment]
    torch.cuda.get_device_capability = lambda device=None: (8, 9)  # type: ignore[assignment]
    torch.cuda.get_device_name = lambda device=None: "pretended"  # type: ignore[assignment]
    properties = SimpleNamespace(name="pretended", multi_processor_count=4)
    torch.cuda.get_device_properties = lambda device=None: properties  # type: ignore[assignment]
    for name in ("empty_cache", "synchronize"):
        setattr(torch.cuda, name, lambda *arguments: None)


_compute = GridExecutor.__call__
_computes = True
"""False during a test of real sizes."""


def _launch(kernel: GridExecutor, *args: Any, **kwargs: Any) -> None:
    named = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and not is_marked(value):
            raise ValueError(f"{name}: pointer argument cannot be accessed from Triton (cpu tensor?)")
    if _computes:
        _compute(kernel, *args, **kwargs)
    numbers = [
        (name, value) for name, value in named.items() if isinstance(value, bool | int) and name.isupper()
    ]
    maker = f"{kernel.fn.__name__}{sorted(numbers)}"
    for name, value in named.items():
        if isinstance(value, torch.Tensor) and ("out" in name or "logprobs" in name):
            for whole in (value, value._base):  # kernels are given other shapes of what their callers return
                if whole is not None:
                    whole._made_by = maker  # type: ignore[attr-defined]


class CpuGenerator(torch.Generator):
    def __new__(cls, device: Any = None) -> CpuGenerator:
        return super().__new__(cls, "cpu")


def _watch_assert_close() -> None:
    compare = torch.testing.assert_close

    def assert_close(actual: Any, expected: Any, **options: Any) -> None:
        assert is_marked(actual) == is_marked(expected), "assert_close: tensors of two devices"
        with torch._C.DisableTorchFunction():
            compare(actual, expected, **options, check_device=False)

    torch.testing.assert_close = assert_close


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _computes
    _computes = item.get_closest_marker("real_sizes") is None
    with PretendedGpu():
        return (yield)
