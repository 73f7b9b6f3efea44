"""Static speed of a model, without a server: prefill and decode over batch sizes and lengths.

    python test/model/test_llama.py --model_dir DIR --batch_sizes 1 8 32 --lengths 128 512
    python test/model/test_llama.py --shape m1          # random weights in the shape of a 1.1B Llama

Prints ms, tokens/s and, for decode, the share of the limit that memory bandwidth sets: the bytes of weights and KV
that one step must read, over the read bandwidth measured in the same run. Not a test: pytest finds nothing in it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tqdm import tqdm

from lightllm.models.base import TpPartBaseModel
from lightllm.models.registry import load_model
from lightllm.ops.batch import make_batch
from lightllm.ops.kv_layer import KvLayer

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 32000,
    "dtype": "bfloat16",
}
QWEN3 = LLAMA | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "tie_word_embeddings": True}


def _shape(
    base: dict[str, object], layers: int, hidden: int, inner: int, heads: int, kv_heads: int, head_dim: int
) -> dict[str, object]:
    return base | {
        "num_hidden_layers": layers, "hidden_size": hidden, "intermediate_size": inner, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": head_dim,
    }  # fmt: skip


SHAPES = {
    "m1": _shape(LLAMA, 22, 2048, 5632, 32, 4, 64),
    "m2": _shape(QWEN3, 28, 1024, 3072, 16, 8, 128),
    "m3": _shape(LLAMA, 2, 64, 128, 4, 2, 32),
    "llama-7b": _shape(LLAMA, 32, 4096, 11008, 32, 32, 128),
    "llama-3.1-8b": _shape(LLAMA | {"vocab_size": 128256}, 32, 4096, 14336, 32, 8, 128),
    "qwen3-0.6b": _shape(QWEN3 | {"vocab_size": 151936}, 28, 1024, 3072, 16, 8, 128),
    "qwen3-14b": _shape(
        QWEN3 | {"vocab_size": 151936, "tie_word_embeddings": False}, 40, 5120, 17408, 40, 8, 128
    ),
}


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.shape:
            (Path(folder) / "config.json").write_text(json.dumps(SHAPES[args.shape]))
        model = load_model(
            args.model_dir or folder,
            data_type=args.data_type,
            device=device,
            load_way="dummy" if args.shape else "HF",
            show_bar=True,
        )
    bandwidth = read_bandwidth(device)
    print(f"loaded in {time.perf_counter() - began:.1f} s: {model.weight_bytes / 1e9:.2f} GB as {model.dtype}, "
          f"computes in {model.activation_dtype} with {torch.get_num_threads()} threads, "
          f"reads {bandwidth / 1e9:.1f} GB/s")  # fmt: skip
    print(
        f"{'batch':>5} {'length':>6} | {'prefill ms':>10} {'tokens/s':>9} | {'decode ms':>9} {'tokens/s':>9} {'% of limit':>10}"
    )
    cases = [(size, length) for size in args.batch_sizes for length in args.lengths]
    for size, length in tqdm(cases, leave=False):
        state = State(model, size, length + args.output_len)
        prefill = best(lambda: state.prefill(length, args.chunk), device, args.repeat)  # noqa: B023
        prefill *= size
        decode = best(lambda: state.decode(length, args.output_len), device, args.repeat) / args.output_len  # noqa: B023
        limit = state.bytes_per_step(length + args.output_len // 2) / bandwidth
        tqdm.write(f"{size:>5} {length:>6} | {prefill * 1e3:>10.1f} {size * length / prefill:>9.0f} | "
                   f"{decode * 1e3:>9.2f} {size / decode:>9.1f} {100 * limit / decode:>10.0f}")  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model_dir", help="a checkpoint")
    source.add_argument("--shape", choices=SHAPES, help="random weights in this shape")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 512], help="prompt tokens")
    parser.add_argument("--output_len", type=int, default=8)
    parser.add_argument("--chunk", type=int, default=512, help="tokens of one prefill pass")
    parser.add_argument("--data_type", choices=("bf16", "fp16", "fp32"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeat", type=int, default=2)
    return parser.parse_args()


class State:
    """KV memory with one run of slots a request, as the router prefers to hand them out."""

    def __init__(self, model: TpPartBaseModel, size: int, longest: int) -> None:
        config, self.model, self.size = model.config, model, size
        shape = (size * longest + 1, 2 * config.num_kv_heads, config.head_dim)
        self.kv = [
            KvLayer(torch.zeros(shape, dtype=model.kv_dtype, device=model.device), config.num_kv_heads)
            for _ in range(config.num_layers)
        ]
        slots = torch.arange(size * longest, dtype=torch.int32, device=model.device)
        self.req_to_token = slots.view(size, longest)

    def prefill(self, length: int, chunk: int) -> None:
        """One request, `chunk` tokens a pass: a batch takes its size times as long, and decoding reads zeros as well."""
        for start in range(0, length, chunk):
            self.step([0], start, min(chunk, length - start), decode=False)

    def decode(self, length: int, steps: int) -> None:
        for position in range(length, length + steps):
            self.step(list(range(self.size)), position, 1, decode=True)

    def step(self, rows: list[int], start: int, count: int, decode: bool) -> None:
        device, n = self.model.device, len(rows)
        batch = make_batch(
            torch.randint(0, self.model.config.vocab_size, (n * count,), device=device),
            rows, [count] * n, [start + count] * n, n if decode else 0, self.req_to_token, self.kv,
            torch.arange(1, n + 1, device=device) * count - 1,
        )  # fmt: skip
        self.model.forward(batch)

    def bytes_per_step(self, length: int) -> int:
        """What a decode step reads: all weights but the embedding table, and the KV of every request."""
        weights = self.model.weight_bytes - self.model.embed_tokens.nbytes
        return weights + self.size * length * sum(layer.bytes_per_slot for layer in self.kv)


def best(work: Callable[[], None], device: torch.device, repeat: int) -> float:
    """Seconds of the fastest of `repeat` runs, after one to warm up."""
    work()
    seconds = []
    for _ in range(repeat):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of reading a buffer that no cache holds."""
    buffer = torch.ones(1 << 27, device=device)
    return buffer.nbytes / best(lambda: buffer.sum().item(), device, 5)  # type: ignore[arg-type, return-value]


if __name__ == "__main__":
    main()
