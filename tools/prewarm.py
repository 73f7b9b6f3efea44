"""Fills a Triton cache for a GPU that this machine need not have, so that the first minutes on one are not spent on compiling.

    python tools/prewarm.py --out triton-cache --shapes llama-7b llama-3.1-8b qwen3-0.6b
    TRITON_CACHE_DIR=triton-cache python -m lightllm.server.api_server ...        # there

A backend with each shape is started, two layers of it, and compiles what it asks for, as it would there. The Triton of this
environment must be that of the other (2.11 of torch has 3.6.0): the cache's keys hold its version. Takes a second or so for
each variant, 20 to 40 of them a shape; what the cache holds is not compiled again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "test")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="the cache's folder")
    parser.add_argument("--shapes", nargs="+", required=True, help="of test/model/test_llama.py")
    parser.add_argument("--architecture", type=int, default=90, help="compute capability, times ten")
    parser.add_argument("--no_pdl", action="store_true", help="as with LIGHTLLM_PDL=0")
    given = parser.parse_args()
    os.environ["TRITON_INTERPRET"], os.environ["TRITON_CACHE_DIR"] = "0", str(given.out.resolve())
    from model.test_llama import SHAPES
    from support.jit_front_end import FrontEnd, pretend_gpu

    unknown = set(given.shapes) - set(SHAPES)
    if unknown:
        parser.error(f"no shape is called {', '.join(sorted(unknown))}; there are {', '.join(SHAPES)}")
    front_end = FrontEnd(given.architecture, compiles=True)
    pretend_gpu(pdl=given.architecture >= 90 and not given.no_pdl)
    for name in given.shapes:
        started, before = time.perf_counter(), len(front_end.variants)
        serve(SHAPES[name] | {"num_hidden_layers": 2})
        count = len(front_end.variants) - before
        print(f"{name}: {count} variants in {time.perf_counter() - started:.0f} s", flush=True)


def serve(shape: dict[str, object]) -> None:
    """Starts a backend of this shape; its start meets every variant of every kernel."""
    from support.recording_device import RecordingDevice

    from lightllm.backend.device import DeviceMemory
    from lightllm.backend.mode_backend import ModeBackend
    from lightllm.config import ServerConfig

    class Device(RecordingDevice):
        measures = True

        def memory(self) -> DeviceMemory:
            return DeviceMemory(60 << 30, 80 << 30)

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 1 << 17}))
        config = ServerConfig(
            model_dir=folder, load_way="dummy", device="cpu", data_type="bf16", max_total_token_num=20_000,
            max_req_total_len=16_384, batch_max_tokens=8192, chunked_prefill_size=8192, cpu_threads=1,
            graph_split_batch_size=2, graph_grow_step_size=64,
        )  # fmt: skip
        backend = ModeBackend(config, 0, 1, open_device=lambda name, index: Device())
        backend.init_model()


if __name__ == "__main__":
    main()
