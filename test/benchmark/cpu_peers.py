"""One stream on this machine's CPU beside llama.cpp and OpenVINO, each in its own process, no server around any of them.

    python -m venv LLAMA && LLAMA/bin/pip install llama-cpp-python==0.3.36 gguf        (builds with a C++ compiler)
    python -m venv OV    && OV/bin/pip install openvino-genai 'optimum-intel[openvino]'
    python test/benchmark/cpu_peers.py --model DIR [--llama_cpp LLAMA/bin/python] [--openvino OV/bin/python] [--runs 3]

bf16 weights of a Llama or Qwen3 checkpoint, 128 tokens in, 64 out, greedy, as many threads as the server takes. The runs
alternate; of each the median of 63 decode steps. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROMPT, OUTPUT = 128, 64
"""Tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--llama_cpp", help="python of an environment that has it")
    parser.add_argument("--openvino", help="python of an environment that has it")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--engine", choices=sorted(_ENGINES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.engine:
        steps = _ENGINES[options.engine](options.model, options.threads)
        print(json.dumps({"ms": statistics.median(steps) * 1e3}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        environment = _ours_environment() | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
        engines = {"lightllm": (sys.executable, options.model, environment)}
        if options.llama_cpp:
            gguf = Path(scratch) / "model.gguf"
            _run(options.llama_cpp, "to_gguf", options.model, 1, target=gguf)
            engines["llama_cpp"] = (options.llama_cpp, gguf, {})
        if options.openvino:
            exported = Path(scratch) / "openvino"
            subprocess.run(
                [str(Path(options.openvino).parent / "optimum-cli"), "export", "openvino", "--model", str(options.model),
                 "--task", "text-generation-with-past", "--weight-format", "fp16", str(exported)],
                check=True, stdout=subprocess.DEVNULL,
            )  # fmt: skip
            engines["openvino"] = (options.openvino, exported, {})
        times: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(options.runs):
            for name, (python, model, variables) in engines.items():
                times[name].append(_run(python, name, model, options.threads, environment=variables))
    ours = sum(times["lightllm"])
    for name, values in times.items():
        each = ", ".join(f"{value:.1f}" for value in values)
        print(f"{name:10} time per output token, ms: {each}    ratio of ours: {ours / sum(values):.2f}")


def _run(
    python: str, engine: str, model: Path, threads: int, target: Path | None = None, environment: Any = None
) -> float:
    """Milliseconds a token that the engine took in a process of its own."""
    command = [python, __file__, "--engine", engine, "--model", str(model), "--threads", str(threads)]
    variables = os.environ | (environment or {}) | ({"GGUF_FILE": str(target)} if target else {})
    done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["ms"]


def _ours_environment() -> dict[str, str]:
    """What the server gives its Model Backend."""
    library = Path(sys.prefix) / "lib/libiomp5.so"
    return {"LD_PRELOAD": str(library), "KMP_BLOCKTIME": "1"} if library.exists() else {}


def _lightllm(model: Path, threads: int) -> list[float]:
    import numpy as np

    from lightllm.backend.mode_backend import ModeBackend
    from lightllm.config import ServerConfig
    from lightllm.protocol.arrays import EMPTY_INT32, int32
    from lightllm.protocol.rounds import JoinRow, Round
    from lightllm.sampling_params import SamplingParams

    room = PROMPT + OUTPUT
    backend = ModeBackend(
        ServerConfig(model_dir=str(model), data_type="bf16", max_total_token_num=room, max_req_total_len=room,
                     cpu_threads=threads), 0, 1,
    )  # fmt: skip
    backend.init_model()
    params = SamplingParams(do_sample=False, max_new_tokens=OUTPUT, ignore_eos=True, logprobs=-1)
    one, sampled = int32([1]), np.ones(1, dtype=np.uint8)
    join = JoinRow(0, PROMPT, params, 0, 0, [])
    backend.execute(
        Round(0, 0, int32([0]), one * PROMPT, one * PROMPT, sampled, int32(_prompt()), int32(range(PROMPT)), [join])
    )  # fmt: skip

    def step(number: int) -> None:
        kv_len = PROMPT + number
        backend.execute(
            Round(number, 1, int32([0]), one, one * kv_len, sampled, EMPTY_INT32, int32([kv_len - 1]))
        )

    return _timed(step)


def _llama_cpp(model: Path, threads: int) -> list[float]:
    from llama_cpp import Llama

    llama = Llama(
        str(model), n_ctx=PROMPT + OUTPUT, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    llama.eval(_prompt())

    def step(number: int) -> None:
        llama.eval([int(llama.sample(temp=0.0))])

    return _timed(step)


def _openvino(model: Path, threads: int) -> list[float]:
    import numpy as np
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(str(model), "CPU", INFERENCE_NUM_THREADS=threads)
    settings = openvino_genai.GenerationConfig(max_new_tokens=OUTPUT, ignore_eos=True, do_sample=False)
    ids = openvino.Tensor(np.array([_prompt()], dtype=np.int64))
    given = openvino_genai.TokenizedInputs(ids, openvino.Tensor(np.ones((1, PROMPT), dtype=np.int64)))
    pipeline.generate(given, settings)
    times = pipeline.generate(given, settings).perf_metrics.raw_metrics.m_new_token_times
    return [(later - earlier) / 1e3 for earlier, later in zip(times, times[1:], strict=False)]


def _timed(step: Callable[[int], None]) -> list[float]:
    seconds = []
    for number in range(1, OUTPUT):
        started = time.perf_counter()
        step(number)
        seconds.append(time.perf_counter() - started)
    return seconds


def _prompt() -> list[int]:
    return [5 + number * 37 % 290 for number in range(PROMPT)]


def _to_gguf(model: Path, threads: int) -> list[float]:
    """Writes the file that GGUF_FILE names; as llama.cpp's own converter lays models out."""
    import gguf
    import numpy as np

    config = json.loads((model / "config.json").read_text())
    architecture = {"llama": "llama", "qwen3": "qwen3"}[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    writer = gguf.GGUFWriter(os.environ["GGUF_FILE"], architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(float(rope))
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for file in sorted(model.glob("*.safetensors")):
        for name, array in _bf16_tensors(file):
            if architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
                array = _rotated_in_pairs(array, heads if "q_proj" in name else kv_heads)
            if array.ndim == 1:
                writer.add_tensor(_gguf_name(name), (array.astype(np.uint32) << 16).view(np.float32))
            else:
                shape, kind = array.shape, gguf.GGMLQuantizationType.BF16
                raw = np.ascontiguousarray(array).view(np.uint8).reshape(shape[0], -1)
                writer.add_tensor(_gguf_name(name), raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [0.0]


def _bf16_tensors(file: Path) -> Any:
    """Name and bits (uint16) of each tensor of a safetensors file."""
    import numpy as np

    data = np.memmap(file, np.uint8, "r")
    start = 8 + int(data[:8].view(np.uint64)[0])
    for name, tensor in json.loads(data[8:start].tobytes()).items():
        if name != "__metadata__":
            assert tensor["dtype"] == "BF16", (name, tensor["dtype"])
            begin, end = tensor["data_offsets"]
            yield name, data[start + begin : start + end].view(np.uint16).reshape(tensor["shape"])


def _rotated_in_pairs(weight: Any, heads: int) -> Any:
    """llama.cpp rotates neighbours where transformers rotates halves."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(rows, -1)


def _gguf_name(name: str) -> str:
    for ours, theirs in {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "model.layers": "blk",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }.items():  # fmt: skip
        name = name.replace(ours, theirs)
    return name


_ENGINES: dict[str, Callable[[Path, int], list[float]]] = {
    "lightllm": _lightllm,
    "llama_cpp": _llama_cpp,
    "openvino": _openvino,
    "to_gguf": _to_gguf,
}

if __name__ == "__main__":
    main()
