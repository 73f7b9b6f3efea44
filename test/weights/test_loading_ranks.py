"""What a rank reads and holds while it loads its part of a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.checkpoints import make_checkpoint
from support.model_zoo import make_zoo_model

from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model
from lightllm.weights.checkpoint import SafetensorsCheckpoint

CPU = torch.device("cpu")


def test_each_of_four_ranks_reads_a_quarter_and_the_norms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_checkpoint(tmp_path / "model", num_key_value_heads=4, tie_word_embeddings=True)
    whole = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    read, counted = SafetensorsCheckpoint.read, []

    def counting(self, *arguments):  # type: ignore[no-untyped-def]
        tensor = read(self, *arguments)
        counted.append(tensor.nbytes)
        return tensor

    monkeypatch.setattr(SafetensorsCheckpoint, "read", counting)
    for rank in range(4):
        counted.clear()
        load_model(str(path), data_type=None, device=CPU, group=TpGroup(rank, 4))
        assert 0.2 * whole < sum(counted) < 0.26 * whole


LOADER = """
import json, sys, threading, time, torch
from lightllm.distributed.tp_group import TpGroup
from lightllm.models.registry import load_model

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, anonymous())

path, small, rank, world = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(1)
with torch.inference_mode():
    load_model(small, data_type=None, device=torch.device("cpu"))  # libraries and thread pools are in memory now
    before = peak = anonymous()
    done = threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.process_time()
    model = load_model(path, data_type=None, device=torch.device("cpu"), group=TpGroup(rank, world))
    seconds = time.process_time() - started
    done.set()
    watcher.join()
print(json.dumps({"weights": model.weight_bytes, "peak": peak - before, "seconds": seconds}))
"""


def load_alone(path: Path, small: Path, world: int) -> dict[str, float]:
    """What the last of `world` ranks finds in a process of its own."""
    command = [sys.executable, "-c", LOADER, str(path), str(small), str(world - 1), str(world)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(world, found)
    return found


@pytest.mark.slow
def test_more_ranks_hold_less_and_load_faster_and_never_hold_more_than_a_share_and_one_tensor(
    tmp_path: Path,
) -> None:
    path = make_checkpoint(
        tmp_path / "model", dtype="bfloat16", vocab_size=32768, hidden_size=1024, intermediate_size=4096,
        num_hidden_layers=12, num_attention_heads=16, num_key_value_heads=8, head_dim=64, std=0.02,
    )  # fmt: skip
    small = make_checkpoint(tmp_path / "small", dtype="bfloat16")
    largest = 32768 * 1024 * 2
    seconds = []
    for world in (1, 2, 4):
        found = load_alone(path, small, world)
        assert found["weights"] > 4 * largest / world
        assert found["peak"] <= found["weights"] + largest
        seconds.append(found["seconds"])  # of the processor: the machine may be busy
    assert seconds[1] < 0.7 * seconds[0] and seconds[2] < 0.7 * seconds[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_a_layer_of_experts_is_never_held_twice(tmp_path: Path, name: str) -> None:
    shape = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 3, "head_dim": 64}
    path = make_zoo_model(tmp_path / "model", name, "bfloat16", std=0.02, vocab_size=32768, **shape).path
    small = make_checkpoint(tmp_path / "small", dtype="bfloat16")
    largest = 32768 * 1024 * 2
    for world in (1, 2):
        found = load_alone(path, small, world)
        assert found["weights"] > 3 * largest / world
        assert found["peak"] <= found["weights"] + largest
