"""--attention_backend: what may be chosen, and that the adapters ask the packages for what the kernels would compute.

The packages need a GPU and are not installed here: stand-ins with their documented calls compute what they are asked
for in plain torch. That the real ones do so too is for a test on a GPU.
"""

import sys
from types import ModuleType

import pytest
import torch
from support.attention_cases import FORMS, AttentionCase

from lightllm.errors import InvalidOption
from lightllm.ops.attention_backends.choice import make_attention_backends
from lightllm.ops.attention_backends.protocol import AttentionBackends, AttentionCall
from lightllm.ops.kv_layer import KvLayer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
UNKNOWN = {"alibi", "sinks", "sparsity"}
"""Parts of a form that the packages do not have."""
COMMON = [name for name, form in FORMS.items() if not UNKNOWN & form.keys()]


def test_a_cpu_attends_with_its_own_kernels_if_they_can_be_had_and_knows_no_other_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backends = make_attention_backends("triton", CPU, graphs=False)
    assert backends.prefill is backends.decode and type(backends.decode).__name__ == "CpuAttention"
    monkeypatch.setattr("lightllm.ops.attention_backends.choice.load_kernels", dict)
    without = make_attention_backends("triton", CPU)
    assert without.prefill is without.decode and type(without.decode).__name__ == "TorchAttention"
    with pytest.raises(InvalidOption, match="needs a GPU"):
        make_attention_backends("fa3,triton", CPU, graphs=False)


@pytest.mark.parametrize("names", ["", "flash", "fa3,triton,triton", "triton,"])
def test_unknown_names_are_refused(names: str) -> None:
    with pytest.raises(InvalidOption, match="one of triton, flashinfer, fa3"):
        make_attention_backends(names, CUDA, graphs=False)


@pytest.mark.parametrize(("name", "package"), [("fa3", "flash_attn_interface"), ("flashinfer", "flashinfer")])
def test_a_missing_package_is_named(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidOption, match=f"{name} needs the package {package}"):
        make_attention_backends(name, CUDA, graphs=False)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    scale: float,
    window_left: int,
    softcap: float | None,
) -> torch.Tensor:
    """One request, causal, aligned at its end. q: [q_len, heads, dim]; keys, values: [kv_len, kv_heads, dim]."""
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, keys) * scale
    if softcap:
        scores = softcap * (scores / softcap).tanh()
    distance = torch.arange(len(keys) - len(q), len(keys))[:, None] - torch.arange(len(keys))
    hidden = (distance < 0) | ((distance > window_left) if window_left >= 0 else False)
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, float("-inf")).softmax(-1), values)


def flash_attn_with_kvcache(
    q, k_cache, v_cache, *, cache_seqlens, page_table, cu_seqlens_q, max_seqlen_q, softmax_scale, causal, window_size,
    softcap,
):  # fmt: skip
    assert causal and k_cache.shape[1] == 1 and cache_seqlens.dtype == page_table.dtype == torch.int32
    starts = cu_seqlens_q.tolist()
    assert len(q) == starts[-1] and max_seqlen_q >= max(b - a for a, b in zip(starts, starts[1:]))
    outputs = []
    for i, length in enumerate(cache_seqlens.tolist()):
        pages = page_table[i, :length].long()
        query = q[starts[i] : starts[i + 1]]
        outputs.append(
            attend(query, k_cache[pages, 0], v_cache[pages, 0], softmax_scale, window_size[0], softcap)
        )
    return torch.cat(outputs)


class PagedWrapper:
    """Both of FlashInfer's: decode is prefill with one query each."""

    tensor_cores = True

    def __init__(self, workspace: torch.Tensor, layout: str) -> None:
        assert layout == "NHD" and workspace.dtype == torch.uint8 and not workspace.any()

    def _keep(self, starts, indptr, indices, last, heads, kv_heads, head_dim, page_size, **options) -> None:
        assert page_size == 1 and last.tolist() == [1] * (len(indptr) - 1)
        assert indptr.dtype == indices.dtype == torch.int32 and len(indices) == indptr[-1]
        if not self.tensor_cores and heads // kv_heads not in (1, 2, 3, 4, 8):
            raise RuntimeError(f"Unsupported group_size: {heads // kv_heads}")
        self.starts, self.indptr, self.indices = starts.tolist(), indptr.tolist(), indices.long()
        self.shape, self.options = (heads, kv_heads, head_dim), options

    def run(self, q: torch.Tensor, paged: torch.Tensor, *, out: torch.Tensor) -> None:
        assert paged.shape[1:] == (2, 1, *self.shape[1:]) and q.shape[1:] == (self.shape[0], self.shape[2])
        options = self.options
        assert options["q_data_type"] == q.dtype
        for i in range(len(self.indptr) - 1):
            pages = paged[self.indices[self.indptr[i] : self.indptr[i + 1]]]
            tokens = slice(self.starts[i], self.starts[i + 1])
            out[tokens] = attend(
                q[tokens], pages[:, 0, 0], pages[:, 1, 0], options["sm_scale"], options["window_left"],
                options["logits_soft_cap"],
            )  # fmt: skip


class DecodeWrapper(PagedWrapper):
    def __init__(self, workspace: torch.Tensor, layout: str, *, use_tensor_cores: bool = False) -> None:
        super().__init__(workspace, layout)
        self.tensor_cores = use_tensor_cores

    def plan(self, indptr, *more, **options) -> None:
        self._keep(torch.arange(len(indptr)), indptr, *more, **options)


class PrefillWrapper(PagedWrapper):
    def plan(self, qo_indptr, *more, causal, **options) -> None:
        assert causal
        self._keep(qo_indptr, *more, **options)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {
        "flash_attn_interface": {"flash_attn_with_kvcache": flash_attn_with_kvcache},
        "flashinfer": {
            "BatchDecodeWithPagedKVCacheWrapper": DecodeWrapper,
            "BatchPrefillWithPagedKVCacheWrapper": PrefillWrapper,
        },
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    make = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, **more: make(*size, **{**more, "device": "cpu"}))


def computed(case: AttentionCase, backends: AttentionBackends, rounds: int = 1) -> torch.Tensor:
    metadata, kv = case.metadata(CPU), case.layer_on(CPU)
    for _ in range(rounds):
        out = torch.full_like(case.q, float("nan"))
        spec = case.attention_spec
        backends.decode_for(spec, kv).decode(AttentionCall(case.q, kv, metadata, spec, out))
        if metadata.num_prefill:
            backends.prefill_for(spec, kv).prefill(AttentionCall(case.q, kv, metadata, spec, out))
    return out


@pytest.mark.parametrize("name", ["fa3", "flashinfer"])
@pytest.mark.parametrize("q_lens", [[1, 1, 1, 7, 22], [3, 4, 1, 7, 22]])
@pytest.mark.parametrize("form", COMMON)
def test_the_adapters_describe_rounds_as_the_packages_expect(
    packages: None, name: str, q_lens: list[int], form: str
) -> None:
    case = AttentionCase([9, 40, 1, 30, 22], q_lens, 3, "shuffled", form=form)
    out = computed(case, make_attention_backends(name, CUDA, graphs=False), rounds=2)
    torch.testing.assert_close(out.double(), case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads", [(7, 1), (12, 2), (48, 1)])
def test_flashinfer_decodes_groups_of_any_size(packages: None, heads: tuple[int, int]) -> None:
    case = AttentionCase([9, 40], [1, 1], 2, "shuffled", heads=heads)
    out = computed(case, make_attention_backends("flashinfer", CUDA, graphs=False))
    torch.testing.assert_close(out.double(), case.expected(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fa3", "flashinfer"])
@pytest.mark.parametrize("form", ["sinks", "alibi", "blocks left out"])
def test_what_a_package_does_not_know_is_computed_by_triton(packages: None, name: str, form: str) -> None:
    backends = make_attention_backends(name, CUDA, graphs=False)
    case = AttentionCase([9, 30], [1, 7], 1, form=form)
    spec, kv = case.attention_spec, case.layer_on(CPU)
    assert backends.prefill_for(spec, kv) is backends.decode_for(spec, kv) is backends.general
    assert type(backends.general).__name__ == "TritonAttention"


@pytest.mark.parametrize("name", ["fa3", "flashinfer"])
def test_kv_memory_with_scales_is_read_by_triton(packages: None, name: str) -> None:
    backends = make_attention_backends(name, CUDA, graphs=False)
    case = AttentionCase([9], [1], 1)
    scaled = KvLayer(case.kv.to(torch.int8), 2, torch.ones(*case.kv.shape[:2], 1))
    plain = case.layer_on(CPU)
    assert backends.decode_for(case.attention_spec, plain) is backends.decode is not backends.general
    assert backends.decode_for(case.attention_spec, scaled) is backends.general


def test_prefill_and_decode_may_differ_and_flashinfer_is_not_captured(packages: None) -> None:
    backends = make_attention_backends("fa3,triton", CUDA, graphs=True)
    assert type(backends.prefill).__name__ == "Fa3Attention" and backends.decode.graphs
    make_attention_backends("flashinfer,triton", CUDA, graphs=True)
    with pytest.raises(InvalidOption, match="cannot be captured"):
        make_attention_backends("triton,flashinfer", CUDA, graphs=True)


def test_fa3_needs_hopper(packages: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    with pytest.raises(InvalidOption, match="Hopper"):
        make_attention_backends("fa3", CUDA, graphs=False)
