"""What a round costs beside its arithmetic: launches of a decode layer, and work of the host that must not grow with rows.

On the GPU's code path, its Triton kernels under the interpreter.
"""

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.kernels import INTERPRETED
from support.model_driver import ModelDriver
from support.model_zoo import make_zoo_model
from support.recording_device import RecordingDevice
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor

import lightllm
from lightllm.backend import mode_backend
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.models.registry import load_model
from lightllm.ops.attention_backends.protocol import AttentionBackends
from lightllm.ops.attention_backends.triton import TritonAttention
from lightllm.protocol.arrays import int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

pytestmark = pytest.mark.skipif(not INTERPRETED, reason="counts on the interpreter")

TRITON = AttentionBackends(*[TritonAttention()] * 3)


class Launches(TorchDispatchMode):
    """The names of kernels and of torch operations that compute something: each is one launch on a GPU, or more."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.counting = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and "empty" not in func.name():
            self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_a_decode_layer_is_at_most_nine_launches(tmp_path, monkeypatch, name):
    """The second one: the first also cuts the round's contexts into parts. qwen2 has biases, qwen3 norms of heads."""
    zoo_model = make_zoo_model(tmp_path, name)
    model = load_model(
        str(tmp_path), data_type=None, device=torch.device("cpu"), max_len=zoo_model.max_len,
        attention_backends=TRITON,
    )  # fmt: skip
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    driver, launches = ModelDriver(model), Launches()
    driver.step([(0, [5, 6, 7]), (1, [8])])
    launch, layer = GridExecutor.__call__, model.layers[1]

    def counted_launch(self, *args, **kwargs):
        if launches.counting:
            launches.names.append(self.fn.__name__)
        with _disable_current_modes():
            launch(self, *args, **kwargs)

    def counted_layer(*arguments):
        launches.counting = True
        with launches:
            result = forward(*arguments)
        launches.counting = False
        return result

    forward = layer.forward
    monkeypatch.setattr(GridExecutor, "__call__", counted_launch)
    monkeypatch.setattr(layer, "forward", counted_layer)
    driver.step([(0, [9]), (1, [10])], num_decode=2)
    kernels = {"rms_norm_kernel", "rotary_kernel", "decode_attention_kernel", "gated_activation_kernel"}
    assert kernels <= set(launches.names)
    assert len(launches.names) <= 9, launches.names


ROOMS = [Path(lightllm.__file__).parent / room for room in ("backend", "models", "layers", "distributed")]


class Lines:
    """Counts the lines that are executed in these rooms, those of loops as often as they run."""

    def __enter__(self) -> Counter[str]:
        self.counts: Counter[str] = Counter()
        sys.settrace(self._on_call)
        return self.counts

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame, event, argument):
        path = Path(frame.f_code.co_filename)
        return self._on_line if any(room in path.parents for room in ROOMS) else None

    def _on_line(self, frame, event, argument):
        if event == "line":
            self.counts[f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"] += 1
        return self._on_line


def next_round(have: np.ndarray, decode: int, length: int, joins: list[JoinRow] | None = None) -> Round:
    """Row i has `have[i]` tokens. The first `decode` rows decode, the others compute `length` prompt tokens each."""
    q_len = np.full(len(have), length, np.int32)
    q_len[:decode] = 1
    starts = 60 * np.arange(len(have))
    slots = [np.arange(start, start + n) + kv for start, n, kv in zip(starts, q_len, have)]
    return Round(
        seq=0, num_decode=decode, rows=int32(range(len(have))), q_len=q_len, kv_len=int32(have + q_len),
        samples=np.ones(len(have), np.uint8), token_ids=int32([5] * (length * (len(have) - decode))),
        slots=int32(np.concatenate(slots)), joins=joins or [],
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["decode", "captured decode", "mixed"])
def test_the_host_does_the_same_for_few_rows_as_for_many(tmp_path, monkeypatch, kind):
    """No loop over requests on the way of a round: the same lines, each as often. Kernels compute nothing meanwhile."""
    monkeypatch.setattr(GridExecutor, "__call__", lambda self, *args, **kwargs: None)
    path = make_checkpoint(tmp_path / "model", "qwen3", num_hidden_layers=1, num_key_value_heads=2)
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=900, running_max_req_size=12,
        max_req_total_len=60, cpu_threads=1, graph_max_batch_size=9, disable_cudagraph=kind != "captured decode",
        graph_split_batch_size=1, graph_grow_step_size=8,
    )  # fmt: skip
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: True), raising=False)
    monkeypatch.setattr(mode_backend, "make_attention_backends", lambda *_: TRITON)
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: RecordingDevice())
    backend.init_model()
    params = SamplingParams(temperature=0.9, top_p=0.8, max_new_tokens=30)
    counts = []
    for rows in (3, 8):
        decode = rows // 3 if kind == "mixed" else rows
        have = np.zeros(rows, dtype=np.int64)
        joins = [JoinRow(row, 20, params, row, 0, [2]) for row in range(rows)]
        for step in range(3):  # in the third one the plan of its sampling is known
            round = next_round(have, decode if step else 0, 3, [] if step else joins)
            have += round.q_len
            with Lines() as lines:
                backend.submit(round)
        counts.append(lines)
    few, many = counts
    assert sum(few.values()) > 50
    assert few == many, {line: (few[line], many[line]) for line in few | many if few[line] != many[line]}
