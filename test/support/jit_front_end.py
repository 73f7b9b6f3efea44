"""Triton's own launching code without a GPU: kernels are specialised as they are there, and neither compiled nor run.

What a kernel is asked with becomes its variant: argument types, which of them are 1 or multiples of 16, constexprs, options of
the compiler. A new variant is compiled, which takes a second; so none may be new while requests run.

Triton decides at its import whether kernels are interpreted, so this is used in a process of its own, with TRITON_INTERPRET=0.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

import lightllm.ops.triton
from lightllm.backend import mode_backend
from lightllm.models import builder
from lightllm.ops import linear
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.ops.packed_experts import StackedExperts
from lightllm.ops.triton import launch
from lightllm.ops.weight_rows import as_rows
from lightllm.quantization import dense

MAX_GRID = (2**31 - 1, 65535, 65535)
"""CUDA's."""


@dataclasses.dataclass(frozen=True)
class Variant:
    kernel: str
    arguments: dict[str, str]
    """Types in the notation of `CompileCase`, a multiple of 16 as "i32:16"; values of constexprs and of integers that are 1."""
    options: dict[str, Any]

    def differs_from(self, other: Variant) -> dict[str, tuple[str, str]]:
        return {
            name: (other.arguments.get(name, ""), value)
            for name, value in self.arguments.items()
            if other.arguments.get(name, "") != value
        }


class FrontEnd:
    """From its making on, every launch of a kernel in this process ends in it. compiles: variants are compiled, into Triton's
    cache; they run in no case."""

    def __init__(self, architecture: int = 90, compiles: bool = False) -> None:
        self.variants: list[Variant] = []
        self.launches: Counter[str] = Counter()
        self.given: Callable[[Any], None] = lambda arguments: None
        """Is called with the arguments of every launch."""
        self.ran: object = None
        """What was launched last."""
        self.architecture = architecture
        driver.set_active(self)
        front_end = self

        def make_kernel(
            kernel: JITFunction, key: Any, signature: Any, device: Any, constexprs: Any, options: Any, attrs: Any, _: Any
        ) -> _Launched:  # fmt: skip
            front_end.variants.append(_variant(kernel, signature, constexprs, options, attrs))
            if compiles:
                source = kernel.ASTSource(kernel, signature, constexprs, attrs)
                kernel.compile(source, target=front_end.get_current_target(), options=options.__dict__)
            made = _Launched(kernel.__name__, front_end)
            kernel.device_caches[device][0][key] = made
            return made

        JITFunction._do_compile = make_kernel  # type: ignore[method-assign]

    # -- what Triton asks of a driver

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


class _Launched:
    function = None
    packed_metadata = None

    def __init__(self, name: str, front_end: FrontEnd) -> None:
        self._name, self._front_end = name, front_end

    def launch_metadata(self, *arguments: Any) -> None:
        pass

    def run(self, x: int, y: int, z: int, *arguments: Any) -> None:
        self._front_end.launches[self._name] += 1
        self._front_end.given(arguments)
        self._front_end.ran = self
        if not all(0 < size <= limit for size, limit in zip((x, y, z), MAX_GRID, strict=True)):
            raise RuntimeError(f"{self._name}: CUDA has no grid of ({x}, {y}, {z})")


def _variant(kernel: JITFunction, signature: Any, constexprs: Any, options: Any, attrs: Any) -> Variant:
    arguments = {}
    for place, (name, kind) in enumerate(signature.items()):
        if kind == "constexpr":
            arguments[name] = repr(constexprs.get((place,)))
        else:
            arguments[name] = f"{kind}:16" if attrs.get((place,)) else str(kind)
    names = ("num_warps", "num_stages", "maxnreg", "launch_pdl")
    return Variant(kernel.__name__, arguments, {name: getattr(options, name, None) for name in names})


def compare_launches(front_end: FrontEnd) -> list[str]:
    """From now on each launch through `launch.launch` is followed by Triton's own: a list of the kernels of which they
    took different variants."""
    different: list[str] = []
    ours = launch.launch

    def compared(kernel: JITFunction, grid: Any, *arguments: Any, **options: Any) -> None:
        ours(kernel, grid, *arguments, **options)
        taken = front_end.ran
        kernel[grid](*arguments, **options)
        if front_end.ran is not taken:
            different.append(kernel.__name__)

    for module in _kernel_modules():
        if getattr(module, "launch", None) is ours:
            module.launch = compared  # type: ignore[attr-defined]
    return different


def _kernel_modules() -> list[Any]:
    return [
        importlib.import_module(f"{lightllm.ops.triton.__name__}.{info.name}")
        for info in pkgutil.iter_modules(lightllm.ops.triton.__path__)
    ]


def pretend_gpu(pdl: bool = True) -> None:
    """Tensors say that they are on a GPU, operations take its kernels, experts its form, bfloat16 is computed in. What a kernel
    would have written is zero."""
    torch.Tensor.is_cuda = property(lambda tensor: True)  # type: ignore[assignment,misc]
    torch.empty, torch.empty_like = _zeroed(torch.empty), _zeroed(torch.empty_like)
    linear._has_bf16_instructions = lambda: True  # type: ignore[assignment]
    dense.pack_linear = builder.pack_linear = _NoProduct  # type: ignore[assignment]
    dense.pack_experts = lambda device, count, expert: StackedExperts(count, expert)
    options = {"PDL": True, "launch_pdl": True} if pdl else {"PDL": False}
    triton = TritonAttention()
    mode_backend.make_attention_backends = lambda *_: AttentionBackends(triton, triton, triton)
    launch.pdl_options = lambda device: dict(options)  # type: ignore[assignment]
    for module in _kernel_modules():
        if hasattr(module, "pdl_options"):
            module.pdl_options = launch.pdl_options  # type: ignore[attr-defined]


def _zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: make(*args, **kwargs).zero_()


class _NoProduct(linear.PlainLinear):
    """A linear layer that reads its weight, and computes next to nothing."""

    def __init__(self, weight: Any, bias: torch.Tensor | None) -> None:
        super().__init__(as_rows(weight).on_device(), bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x[:, :1], self.weight[:, :1], self.bias)
