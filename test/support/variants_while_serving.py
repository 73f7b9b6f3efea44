"""Which variants of kernels a backend asks for after its start, and what its graphs read: as JSON on standard output.

    TRITON_INTERPRET=0 PYTHONPATH=.:test python -m support.variants_while_serving dense|experts|latent [--many]

The GPU's code without a GPU: see `support.jit_front_end`. Whoever finds a variant here lets its kernel not be specialised for
what changes from round to round, or adds a warm-up round that has it.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightllm.backend.device import DeviceMemory
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.sampling_params import SamplingParams
from support.graph_reads import GraphReads
from support.jit_front_end import FrontEnd, Variant, compare_launches, pretend_gpu
from support.recording_device import RecordingDevice
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

BASE = {
    "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "codes": BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "dense": BASE | {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "experts": BASE
    | {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 32, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "latent": BASE
    | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 512, "q_lora_rank": None,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "num_key_value_heads": 8, "n_routed_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 64, "first_k_dense_replace": 1, "n_shared_experts": 1,
        "moe_layer_freq": 1, "scoring_func": "softmax", "topk_method": "greedy", "norm_topk_prob": False,
        "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1,
    },
}  # fmt: skip
"""Of models: with KV memory of 8 bits; with an MLP; with a mixture of experts; with latent attention beside one."""
ROWS, SLOTS, LONGEST = 256, 60_000, 1000
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    {"temperature": 1.0, "seed": 4},
    {"temperature": 0.0, "frequency_penalty": 0.4},
    {"temperature": 0.7, "top_k": 20, "seed": 5, "logprobs": 5},
    {"temperature": 0.0, "logprobs": 2, "raw_logprobs": True},
    {"temperature": 0.0, "logprobs": 0},
    {"temperature": 0.0, "presence_penalty": 0.5, "logit_bias": {5: 1.0}},
    {"temperature": 0.0, "min_new_tokens": 5},
    {"temperature": 0.0, "exponential_decay_length_penalty": (1, 1.5)},
    {"temperature": 0.0, "prompt_logprobs": 2},
    {"temperature": 0.0, "logprobs": -1},
]
"""Every way in which a row is sampled."""


class WatchedDevice(RecordingDevice):
    """Measures memory as a GPU does, and keeps what each graph reads."""

    measures = True

    def __init__(self, front_end: FrontEnd) -> None:
        super().__init__()
        self._front_end = front_end
        self.reads: list[GraphReads] = []

    def memory(self) -> DeviceMemory:
        return DeviceMemory(60 << 30, 80 << 30)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        reads = GraphReads()
        self.reads.append(reads)
        self._front_end.given = reads.launched
        try:
            with reads:
                return super().capture(work)
        finally:
            self._front_end.given = lambda arguments: None


def crowd(count: int, longest: int) -> list[Wanted]:
    dice = random.Random(0)
    return [
        Wanted(
            [dice.randrange(3, 4096) for _ in range(dice.choice([1, 7, 64, 129, 500]))],
            SamplingParams(**KINDS[i % len(KINDS)], max_new_tokens=dice.randrange(1, longest)),
            after_rounds=dice.randrange(count // 3 + 1),
        )
        for i in range(count)
    ]


def services(many: bool) -> list[tuple[str, list[Wanted]]]:
    """Each kind of request alone, sixteen of one kind together, prompts of many lengths, then all at once."""
    prompt, tokens = list(range(3, 40)), 24 if many else 3
    alone = [(str(kind), [Wanted(prompt, SamplingParams(**kind, max_new_tokens=tokens))]) for kind in KINDS]
    together = [
        Wanted([*prompt, *range(i)], SamplingParams(temperature=0.8, seed=i + 1, max_new_tokens=tokens))
        for i in range(16)
    ]
    greedy = SamplingParams(temperature=0.0, max_new_tokens=2)
    lengths = [(f"{n} tokens", [Wanted([5] * n, greedy)]) for n in (1, 15, 16, 48, 100, 256, 400, 900)]
    return [
        *alone,
        ("16 together", together),
        *lengths,
        ("a crowd", crowd(150 if many else 36, 40 if many else 6)),
    ]


def late_variants(front_end: FrontEnd, backend: ModeBackend, many: bool) -> list[str]:
    """What is new in each service, beside the nearest that the start had."""
    limits = scheduler_config(
        max_total_token_num=SLOTS, max_req_total_len=LONGEST, running_max_req_size=ROWS, batch_max_tokens=4096,
        chunked_prefill_size=1024, max_waiting_requests=4096, eos_token_ids=[2],
    )  # fmt: skip
    known, found = list(front_end.variants), []
    for name, wanted in services(many):
        before = len(front_end.variants)
        serving = Serving(backend, limits, wait=True)
        serving.run(wanted)
        assert not serving.failures, serving.failures
        found += [f"{name}: {described(variant, known)}" for variant in front_end.variants[before:]]
    return found


def described(variant: Variant, known: list[Variant]) -> str:
    same = [other for other in known if other.kernel == variant.kernel]
    if not same:
        return f"{variant.kernel} was never launched before"
    nearest = min(same, key=lambda other: len(variant.differs_from(other)))
    options = [(nearest.options, variant.options)] if nearest.options != variant.options else []
    return f"{variant.kernel} {variant.differs_from(nearest)} {options} of {len(same)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("--many", action="store_true", help="more and longer requests, every graph")
    given = parser.parse_args()
    front_end = FrontEnd()
    pretend_gpu()
    different = compare_launches(front_end)
    device = WatchedDevice(front_end)
    sizes = {} if given.many else {"graph_split_batch_size": 2, "graph_grow_step_size": 64}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(SHAPES[given.shape]))
        config = ServerConfig(
            model_dir=folder, device="cpu", load_way="dummy", data_type="bf16", max_total_token_num=SLOTS,
            running_max_req_size=ROWS, max_req_total_len=LONGEST, chunked_prefill_size=1024, batch_max_tokens=4096,
            cpu_threads=1, max_waiting_requests=4096, **sizes, **({"llm_kv_type": "int8kv"} if given.shape == "codes" else {}),
        )  # fmt: skip
        backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
        backend.init_model()
    before = len(front_end.variants)
    late = late_variants(front_end, backend, given.many)
    answer = {
        "kernels": sorted({variant.kernel for variant in front_end.variants}),
        "variants": before,
        "late": late,
        "different": different,
        "launches": sum(front_end.launches.values()),
        "graphs": len(device.reads),
        "read": [len(reads.outside) for reads in device.reads],
        "freed": [text for reads in device.reads for text in reads.freed()],
        "asked": [text for reads in device.reads for text in reads.asked],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
