"""Who computes attention on a GPU: the project's Triton kernels, FlashInfer or FlashAttention-3 (--attention_backend).

Chosen once at start, separately for prefill and decode. FlashInfer and FlashAttention-3 are optional packages, which see
KV memory as pages of one token. What they do not know (ALiBi, sinks, multi-head latent attention) Triton computes.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import torch

from lightllm.errors import InvalidOption
from lightllm.ops.attention_spec import AttentionSpec

if TYPE_CHECKING:
    from lightllm.ops.gpu_attention_plan import GpuAttentionPlan


class AttentionBackend(Protocol):
    """Arguments and results are those of `ops/decode_attention.py` and `ops/prefill_attention.py`."""

    graphs: bool
    """Decoding can be captured: nothing is asked of the device on the way."""
    reads_fresh: bool
    """Prefill reads the new tokens' keys and values from `fresh` where no chunk has a cached prefix."""

    def takes(self, spec: AttentionSpec) -> bool:
        """Whether it knows this spec; if not, Triton computes it."""

    def decode(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None: ...

    def prefill(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None: ...


@dataclasses.dataclass(frozen=True)
class AttentionBackends:
    prefill: AttentionBackend
    decode: AttentionBackend

    def prefill_of(self, spec: AttentionSpec) -> AttentionBackend:
        return self.prefill if self.prefill.takes(spec) else TRITON.prefill

    def decode_of(self, spec: AttentionSpec) -> AttentionBackend:
        return self.decode if self.decode.takes(spec) else TRITON.decode


class TritonAttention:
    graphs = True
    reads_fresh = True

    def takes(self, spec: AttentionSpec) -> bool:
        return True

    def decode(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        from lightllm.ops.triton.decode_attention import decode_attention

        decode_attention(q, kv, plan, spec, out)

    def prefill(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        from lightllm.ops.triton.prefill_attention import prefill_attention

        prefill_attention(q, kv, plan, spec, out, fresh)


TRITON = AttentionBackends(TritonAttention(), TritonAttention())


class Fa3Attention:
    """FlashAttention-3's `flash_attn_with_kvcache` with a page table whose pages are slots. Hopper only."""

    graphs = True
    reads_fresh = False

    def __init__(self, device: torch.device) -> None:
        self._attend = _package("fa3", "flash_attn_interface").flash_attn_with_kvcache
        if torch.cuda.get_device_capability(device)[0] != 9:
            raise InvalidOption(
                "--attention_backend fa3 needs a Hopper GPU.", "Use triton or flashinfer on this one."
            )

    def takes(self, spec: AttentionSpec) -> bool:
        return _is_common(spec)

    def decode(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        n = plan.num_decode
        self._run(q[:n], kv, plan, spec, out[:n], 0, n, plan.q_start[: n + 1], 1)

    def prefill(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        n = plan.num_decode
        starts = plan.once(("fa3 starts",), lambda: plan.q_start[n:] - n)
        self._run(q[n:], kv, plan, spec, out[n:], n, len(plan.rows), starts, plan.max_q_len)

    def _run(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
        first: int,
        last: int,
        starts: torch.Tensor,
        max_q_len: int,
    ) -> None:
        """Entries first .. last - 1, whose tokens are those of q and out."""
        pages = plan.once(
            ("fa3 pages", first, last),
            lambda: plan.req_to_token[:, : plan.max_kv_len].index_select(0, plan.rows[first:last]),
        )
        kv_heads = kv.shape[1] // 2
        attended = self._attend(
            q,
            kv[:, None, :kv_heads],
            kv[:, None, kv_heads:],
            cache_seqlens=plan.kv_len[first:last],
            page_table=pages,
            cu_seqlens_q=starts,
            max_seqlen_q=max_q_len,
            softmax_scale=spec.scale,
            causal=True,
            window_size=(spec.window - 1 if spec.window else -1, 0 if spec.window else -1),
            softcap=spec.softcap,
        )
        out.copy_(attended)


class FlashInferAttention:
    """FlashInfer's paged wrappers with pages of one token. They plan each round on the host, so decoding with them is
    not captured."""

    graphs = False
    reads_fresh = False
    _WORKSPACE = 128 << 20
    """Bytes, as its documentation recommends."""

    def __init__(self, device: torch.device) -> None:
        package = _package("flashinfer", "flashinfer")
        # One workspace each: a mixed round plans both before it runs either. Decoding without tensor cores knows some
        # group sizes only (1, 2, 3, 4 and 8).
        self._decode = package.BatchDecodeWithPagedKVCacheWrapper(
            self._workspace(device), "NHD", use_tensor_cores=True
        )
        self._prefill = package.BatchPrefillWithPagedKVCacheWrapper(self._workspace(device), "NHD")
        self._planned: dict[str, tuple[Any, ...]] = {}

    def takes(self, spec: AttentionSpec) -> bool:
        return _is_common(spec)

    def decode(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
    ) -> None:
        n = plan.num_decode
        if self._is_new("decode", plan, spec):
            self._decode.plan(
                *self._pages(plan, 0, n), q.shape[1], kv.shape[1] // 2, q.shape[2], 1, **_options(q, spec)
            )
        self._decode.run(q[:n], self._paged(kv), out=out[:n])

    def prefill(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        plan: GpuAttentionPlan,
        spec: AttentionSpec,
        out: torch.Tensor,
        fresh: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> None:
        n = plan.num_decode
        if self._is_new("prefill", plan, spec):
            pages = self._pages(plan, n, len(plan.rows))
            shape = (q.shape[1], kv.shape[1] // 2, q.shape[2], 1)
            self._prefill.plan(plan.q_start[n:] - n, *pages, *shape, causal=True, **_options(q, spec))
        self._prefill.run(q[n:], self._paged(kv), out=out[n:])

    def _is_new(self, phase: str, plan: GpuAttentionPlan, spec: AttentionSpec) -> bool:
        """A wrapper holds one plan: it is made anew when the round or the layers' spec changes."""
        key = (plan, spec.scale, spec.window, spec.softcap)
        if self._planned.get(phase) == key:
            return False
        self._planned[phase] = key
        return True

    @staticmethod
    def _workspace(device: torch.device) -> torch.Tensor:
        """Zeros, as the package wants it the first time."""
        return torch.zeros(FlashInferAttention._WORKSPACE, dtype=torch.uint8, device=device)

    @staticmethod
    def _paged(kv: torch.Tensor) -> torch.Tensor:
        """[slots + 1, 2, 1, kv_heads, head_dim]: pages, keys and values, tokens of a page."""
        return kv.unflatten(1, (2, 1, kv.shape[1] // 2))

    @staticmethod
    def _pages(
        plan: GpuAttentionPlan, first: int, last: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Starts of the entries' pages, the pages, and the tokens in each last page."""

        def make() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            lengths = plan.kv_len[first:last]
            table = plan.req_to_token[:, : plan.max_kv_len].index_select(0, plan.rows[first:last])
            inside = torch.arange(table.shape[1], device=table.device) < lengths[:, None]
            starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
            return starts, table[inside], torch.ones_like(lengths)

        return plan.once(("flashinfer pages", first, last), make)


def _options(q: torch.Tensor, spec: AttentionSpec) -> dict[str, Any]:
    return {
        "sm_scale": spec.scale,
        "window_left": spec.window - 1 if spec.window else -1,
        "logits_soft_cap": spec.softcap or None,
        "q_data_type": q.dtype,
    }


def _is_common(spec: AttentionSpec) -> bool:
    """Windows and soft caps are what both packages know."""
    return spec.alibi_slopes is None and spec.sinks is None and spec.sparsity is None


def _package(backend: str, module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InvalidOption(
            f"--attention_backend {backend} needs the package {module}, which cannot be imported: {error}.",
            "Install it, or leave the option out.",
        ) from error


_BACKENDS: dict[str, Callable[[torch.device], AttentionBackend]] = {
    "triton": lambda device: TritonAttention(),
    "flashinfer": FlashInferAttention,
    "fa3": Fa3Attention,
}


def make_attention_backends(names: str, device: torch.device, graphs: bool) -> AttentionBackends:
    """names: one for both, or "prefill,decode"; graphs: decode rounds will be captured.

    Raises `InvalidOption` for a backend that is not known, not installed, or cannot work here.
    """
    chosen = [name.strip() for name in names.split(",")]
    if not 1 <= len(chosen) <= 2 or not set(chosen) <= set(_BACKENDS):
        raise InvalidOption(
            f"--attention_backend {names}: one of {', '.join(_BACKENDS)}, or two, for prefill and for decode.",
            "For example: --attention_backend fa3,triton",
        )
    if device.type == "cpu":
        if chosen != ["triton"] * len(chosen):
            raise InvalidOption(f"--attention_backend {names} needs a GPU.", "Leave it out.")
        return TRITON
    made = {name: _BACKENDS[name](device) for name in dict.fromkeys(chosen)}
    if graphs and not made[chosen[-1]].graphs:
        raise InvalidOption(
            f"--attention_backend {names}: decoding with {chosen[-1]} cannot be captured.",
            "Add --disable_cudagraph, or decode with another: --attention_backend flashinfer,triton",
        )
    return AttentionBackends(made[chosen[0]], made[chosen[-1]])
