"""`ModeBackend` through rounds, as the Router sends them."""

import dataclasses
import gzip
import json

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint

from lightllm.backend import mode_backend, round_inputs
from lightllm.backend.device import open_device
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.errors import DeviceError, InvalidOption
from lightllm.models.base import TpPartBaseModel
from lightllm.protocol import codec
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("backend") / "model", "llama")
    return ServerConfig(
        model_dir=str(path), data_type="fp32", max_total_token_num=200, running_max_req_size=4, cpu_threads=1
    )


@pytest.fixture(scope="module")
def backend(config):
    backend = ModeBackend(config, rank=0, world_size=1)
    backend.init_model()
    return backend


@pytest.fixture(scope="module")
def expected(config):
    """Greedy tokens after the prompt, from transformers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(config.model_dir, dtype=torch.float32).eval()

    def tokens(prompt, count):
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
            pad_token_id=0,
        )  # fmt: skip
        return out[0, len(prompt) :].tolist()

    return tokens


def join(row, prompt_len, params=GREEDY, **more):
    return JoinRow(row=row, prompt_len=prompt_len, params=params, seed=0, choice=0, end_token_ids=[2], **more)


def prefill(row, token_ids, slots, start=0, sample=True, **more):
    return Round(
        seq=0, num_decode=0, rows=int32([row]), q_len=int32([len(token_ids)]), kv_len=int32([start + len(token_ids)]),
        samples=np.array([sample], np.uint8), token_ids=int32(token_ids), slots=int32(slots), **more,
    )  # fmt: skip


def decode(rows, kv_len, slots, **more):
    return Round(
        seq=0, num_decode=len(rows), rows=int32(rows), q_len=int32([1] * len(rows)), kv_len=int32(kv_len),
        samples=np.ones(len(rows), np.uint8), token_ids=EMPTY_INT32, slots=int32(slots), **more,
    )  # fmt: skip


def test_ready_reports_sizes_and_where_the_time_went(config):
    told = []
    ready = ModeBackend(config, 0, 1, told.append).init_model()
    assert (ready.max_total_token_num, ready.vocab_size, ready.dtype, ready.device) == (
        200,
        384,
        "float32",
        "cpu",
    )
    assert {"weights", "kv memory", "warm-up"} <= set(ready.seconds)
    assert any("warming up" in line for line in told)


def test_prompt_in_chunks_with_scattered_slots_then_decoding(backend, expected):
    prompt = [10, 20, 30, 40, 50, 60, 70]
    first = backend.execute(prefill(1, prompt[:4], [9, 3, 77, 5], sample=False, joins=[join(1, 7)]))
    assert len(first.token_ids) == 0
    tokens = backend.execute(prefill(1, prompt[4:], [100, 6, 4], start=4)).token_ids.tolist()
    for step in range(5):
        tokens += backend.execute(decode([1], [8 + step], [120 - 3 * step])).token_ids.tolist()
    assert tokens == expected(prompt, 6)


def test_rounds_that_travelled_as_bytes_give_the_same(backend, expected):
    round = prefill(0, [11, 12, 13], [50, 51, 52], joins=[join(0, 3)])
    result = backend.execute(codec.to_backend.decode(codec.encode(round)))
    assert codec.from_backend.decode(codec.encode(result)).token_ids.tolist() == expected([11, 12, 13], 1)
    assert result.seconds > 0


def test_decode_rows_beside_a_prefill_chunk(backend, expected):
    old, new = [10, 11, 12, 13], [90, 91, 92]
    tokens = backend.execute(prefill(3, old, [0, 1, 2, 3], joins=[join(3, 4)])).token_ids.tolist()
    mixed = Round(
        seq=1, num_decode=1, rows=int32([3, 0]), q_len=int32([1, 3]), kv_len=int32([5, 3]),
        samples=np.array([1, 1], np.uint8), token_ids=int32(new), slots=int32([10, 20, 21, 22]), joins=[join(0, 3)],
    )  # fmt: skip
    result = backend.execute(mixed).token_ids.tolist()
    assert tokens + result[:1] == expected(old, 2)
    assert result[1:] == expected(new, 1)


def test_the_last_layer_computes_only_what_is_read_of_it(backend, monkeypatch):
    """A decode row, a chunk that goes on, the end of a prompt, and a prompt whose log-probabilities are wanted."""
    wants = SamplingParams(temperature=0.0, prompt_logprobs=1)
    joins = [join(0, 9), join(1, 3), join(2, 3, wants, history_ids=int32([7, 8, 9]))]
    mixed = Round(
        seq=1, num_decode=1, rows=int32([3, 0, 1, 2]), q_len=int32([1, 4, 3, 3]), kv_len=int32([3, 4, 3, 3]),
        samples=np.array([1, 0, 1, 1], np.uint8), token_ids=int32([20, 21, 22, 23, 30, 31, 32, 7, 8, 9]),
        slots=int32(range(10, 21)), joins=joins,
    )  # fmt: skip
    rounds = [
        prefill(3, [10, 11], [0, 1], joins=[join(3, 2)]),
        mixed,
        prefill(0, [24, 25], [21, 22], start=4, sample=False),
    ]
    computed, logits = [], []
    mlp, forward, whole = (
        backend.model.layers[-1].mlp,
        backend.model.layers[-1].mlp.forward,
        backend.model.forward,
    )
    monkeypatch.setattr(mlp, "forward", lambda x: (computed.append(len(x)), forward(x))[1])
    monkeypatch.setattr(backend.model, "forward", lambda batch: logits.append(whole(batch)) or logits[-1])
    for round in rounds:
        backend.execute(round)
    monkeypatch.setattr(round_inputs, "_wanted", lambda *_: None)
    for round in rounds:
        backend.execute(round)
    assert computed == [1, 1 + 1 + 3, 2, 11, 2]  # nothing at all of the third round
    for some, all_computed in zip(logits[:3], logits[3:], strict=True):
        torch.testing.assert_close(some, all_computed)


def test_a_row_that_joins_with_a_cached_prefix_reads_its_slots(backend, expected):
    prompt = [30, 31, 32, 33, 34, 35]
    backend.execute(prefill(0, prompt[:4], [60, 61, 62, 63], sample=False, joins=[join(0, 6)]))
    joins = [join(2, 6, prefix_slots=int32([60, 61, 62, 63]))]
    result = backend.execute(prefill(2, prompt[4:], [70, 71], start=4, joins=joins, leaves=[0]))
    assert result.token_ids.tolist() == expected(prompt, 1)


def test_slots_and_rows_are_reused_in_the_next_round(backend, expected):
    for prompt in ([10, 20, 30], [44, 45, 46, 47], [5]):
        slots = list(range(len(prompt)))
        result = backend.execute(prefill(2, prompt, slots, joins=[join(2, len(prompt))], leaves=[2]))
        assert result.token_ids.tolist() == expected(prompt, 1)


def test_prompt_log_probabilities_come_chunk_by_chunk(backend):
    prompt = [10, 20, 30, 40, 50]
    params = SamplingParams(temperature=0.0, prompt_logprobs=2)
    joins = [join(0, 5, params, history_ids=int32(prompt))]
    first = backend.execute(prefill(0, prompt[:2], [0, 1], sample=False, joins=joins)).prompt_logprobs
    second = backend.execute(prefill(0, prompt[2:], [2, 3, 4], start=2)).prompt_logprobs
    joins = [join(1, 5, params, history_ids=int32(prompt))]
    whole = backend.execute(prefill(1, prompt, [5, 6, 7, 8, 9], joins=joins)).prompt_logprobs
    assert [(part.entry, part.start, len(part.logprobs)) for part in first + second] == [(0, 1, 2), (0, 3, 2)]
    assert whole[0].start == 1
    np.testing.assert_allclose(
        np.concatenate([first[0].logprobs, second[0].logprobs]), whole[0].logprobs, atol=1e-5
    )
    assert [top.token_ids for top in first[0].top + second[0].top] == [top.token_ids for top in whole[0].top]


def test_a_round_without_rows_only_leaves(backend):
    result = backend.execute(decode([], [], [], leaves=[0, 1, 2, 3]))
    assert len(result.token_ids) == len(result.logprobs) == 0


def test_the_hold_places_stay_as_they_are(backend):
    memory = backend.memory
    assert (memory.req_to_token[memory.max_rows] == memory.slots).all()
    before = [layer.data[memory.slots].clone() for layer in memory.kv]
    backend.execute(prefill(0, [10, 20, 30], [0, 1, 2], joins=[join(0, 3)]))
    assert all(torch.equal(a, layer.data[memory.slots]) for a, layer in zip(before, memory.kv))
    assert all(torch.isfinite(layer.data[memory.slots]).all() for layer in memory.kv)


INVALID = {
    "row too large": prefill(4, [5], [0]),
    "row never joined": prefill(3, [5], [0], leaves=[3]),
    "row twice": decode([0, 0], [2, 2], [1, 2]),
    "slot too large": prefill(0, [5], [200]),
    "slot negative": prefill(0, [5], [-1]),
    "token id too large": prefill(0, [384], [0]),
    "too few slots": prefill(0, [5, 6], [0]),
    "too long": prefill(0, [5], [0], start=200),
    "join of a row too large": prefill(0, [5], [0], joins=[join(7, 1)]),
    "leave of a row too large": prefill(0, [5], [0], leaves=[-1]),
    "prefix slot too large": prefill(0, [5], [0], start=1, joins=[join(0, 2, prefix_slots=int32([200]))]),
}


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_round_is_an_error_and_the_next_one_works(backend, expected, name):
    backend.execute(prefill(0, [10], [9], joins=[join(0, 1)]))
    with pytest.raises(ValueError):
        backend.execute(INVALID[name])
    backend.resync(1)
    result = backend.execute(prefill(1, [10, 20], [0, 1], joins=[join(1, 2)]))
    assert result.token_ids.tolist() == expected([10, 20], 1)


def test_a_failed_round_keeps_last_tokens_and_counts(backend, monkeypatch):
    params = SamplingParams(temperature=0.0, frequency_penalty=1.0)
    prompt = [10, 20, 30]

    def run(fail):
        out = backend.execute(prefill(0, prompt, [0, 1, 2], joins=[join(0, 3, params)])).token_ids.tolist()
        for step in range(4):
            round = decode([0], [4 + step], [3 + step])
            if fail and step == 2:
                with monkeypatch.context() as patch:
                    patch.setattr(backend.model, "forward", lambda batch: 1 / 0)
                    with pytest.raises(ZeroDivisionError):
                        backend.execute(round)
                backend.resync(9)
            out += backend.execute(round).token_ids.tolist()
        return out

    assert run(fail=True) == run(fail=False)


def test_device_names():
    assert open_device("cpu").torch_device.type == "cpu"
    if not torch.cuda.is_available():
        assert open_device("auto").torch_device.type == "cpu"
        with pytest.raises(DeviceError, match="--device cpu"):
            open_device("cuda")


def test_more_ranks_than_gpus_is_an_error_with_both_numbers(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        DeviceError, match="Rank 2 of this machine has no GPU: there are 2. Use --tp 2 at most a node"
    ):
        open_device("cuda", 2)


def test_several_ranks_need_a_place_to_meet(config):
    with pytest.raises(InvalidOption, match="Several ranks need a rendezvous"):
        ModeBackend(config, 0, 2)


def test_a_profile_names_the_parts_of_its_rounds(config, tmp_path):
    backend = ModeBackend(dataclasses.replace(config, enable_nvtx=True, profile_dir=str(tmp_path)), 0, 1)
    backend.init_model()
    backend.start_profile(10)
    backend.execute(prefill(0, [10, 20, 30], [0, 1, 2], joins=[join(0, 3)]))
    backend.execute(decode([0], [4], [3]))
    with gzip.open(backend.stop_profile().result(30)) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {"prefill_batch", "decode_batch", "sample"} <= names


def test_out_of_memory_while_loading_names_the_numbers_and_the_options(config, monkeypatch):
    def exhausted(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore lines")

    monkeypatch.setattr(mode_backend, "load_model", exhausted)
    message = r"loading weights: [0-9.]+ of [0-9.]+ GiB are free. CUDA out of memory. Tried to allocate 20.00 GiB. Take"
    with pytest.raises(DeviceError, match=message):
        ModeBackend(config, 0, 1).init_model()


def test_out_of_memory_in_the_first_rounds_names_the_options(config, monkeypatch):
    def exhausted(self, batch):
        raise MemoryError

    monkeypatch.setattr(TpPartBaseModel, "forward", exhausted)
    with pytest.raises(DeviceError, match="warming up.*--max_total_token_num.*--batch_max_tokens"):
        ModeBackend(config, 0, 1).init_model()
