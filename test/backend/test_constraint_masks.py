"""When masks are asked for, and what they wait for."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from support.checkpoints import make_checkpoint
from support.constrained import Vocabulary
from support.recording_device import RecordingDevice
from support.tokenizers import byte_level

from lightllm.backend.constraint_masks import ConstraintMasks
from lightllm.backend.device import Arrived
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.sampling_plan import Constrained
from lightllm.config import ServerConfig
from lightllm.constraints.matchers import Matchers
from lightllm.protocol.arrays import EMPTY_INT32, int32
from lightllm.protocol.rounds import JoinRow, Round
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer


class Journal(RecordingDevice):
    """Notes which results are waited for."""

    def __init__(self) -> None:
        super().__init__(late=True)
        self.events: list[tuple[str, int]] = []
        self._downloads = 0

    def download(self, tensors):
        number, arrival = self._downloads, super().download(tensors)
        self._downloads += 1
        wait = arrival.wait
        arrival.wait = lambda: (self.events.append(("wait for", number)), wait())[1]
        return arrival


def begin(params: list[SamplingParams], prompt: list[int]) -> Round:
    """Every row computes the same prompt, and samples."""
    rows, size = len(params), len(prompt)
    joins = [
        JoinRow(row, size, each, 0, 0, [2], history_ids=int32(prompt)) for row, each in enumerate(params)
    ]
    counts, slots = int32([size] * rows), int32(range(rows * size))
    return Round(
        0, 0, int32(range(rows)), counts, counts, np.ones(rows, np.uint8), int32(prompt * rows), slots, joins
    )


def decode(rows: list[int], kv_len: list[int], slot: int) -> Round:
    ones, slots = int32([1] * len(rows)), int32(range(slot, slot + len(rows)))
    return Round(1, len(rows), int32(rows), ones, int32(kv_len), ones.astype(np.uint8), EMPTY_INT32, slots)


@pytest.mark.parametrize("graphs", [False, True])
def test_masks_wait_for_the_last_round_alone_and_with_the_next_one_on_the_device(
    tmp_path, monkeypatch, graphs
):
    """Row 0 is constrained, row 1 is not; its rounds wait for nothing."""
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    config = ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=100, running_max_req_size=2,
        cpu_threads=1, disable_cudagraph=not graphs, graph_max_batch_size=2,
    )  # fmt: skip
    device = Journal()
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
    backend.init_model()
    computed = iter(range(100))
    for owner, name in ((backend, "decode_batch"), (backend, "prefill_batch")):
        compute = getattr(owner, name)

        def noted(round, compute=compute):
            result = compute(round)
            device.events.append(("computing", next(computed)))
            return result

        monkeypatch.setattr(owner, name, noted)
    device.events.clear()
    device._downloads = 0
    params = [SamplingParams(temperature=0.0, regular_constraint="[a-z ]*"), SamplingParams(temperature=0.0)]
    rounds = [
        begin(params, [7, 8, 9]),
        decode([0, 1], [4, 4], 10),
        decode([0, 1], [5, 5], 12),
        decode([1], [6], 14),
        decode([1], [7], 16),
        decode([0, 1], [6, 8], 18),
        decode([0], [7], 20),
    ]
    pending = [backend.submit(round) for round in rounds]
    assert device.events == [
        ("computing", 0),
        ("computing", 1), ("wait for", 0),
        ("computing", 2), ("wait for", 1),
        ("computing", 3),
        ("computing", 4),
        ("computing", 5), ("wait for", 2),  # the last one that said something to a matcher
        ("computing", 6), ("wait for", 5),
    ]  # fmt: skip
    assert all(len(each.result().token_ids) for each in pending)


# -- by itself


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    return Vocabulary(load_tokenizer(str(byte_level(tmp_path_factory.mktemp("masks") / "model"))))


def constrained(*rows: int) -> Constrained:
    positions = list(range(len(rows)))
    return Constrained(positions, np.array(rows), torch.tensor(positions))


def join(row: int, pattern: str, said: list[int] | None = None) -> JoinRow:
    history = int32([5, 5, 5, *(said or [])])
    return JoinRow(row, 3, SamplingParams(regular_constraint=pattern), 0, 0, [], history_ids=history)


AMBIGUOUS = SamplingParams(guided_grammar='start: s\ns: s s s | s s | "a"')


def test_a_matcher_is_made_while_the_prompt_is_computed(vocabulary, monkeypatch):
    """Joining does not wait for it; the masks do."""
    begun, go_on = threading.Event(), threading.Event()
    open_matcher = Matchers.open

    def slow(self, params, said):
        begun.set()
        assert go_on.wait(10)
        return open_matcher(self, params, said)

    monkeypatch.setattr(Matchers, "open", slow)
    masks = ConstraintMasks(lambda: vocabulary.matchers)
    masks.join(join(4, "a|b"))
    assert begun.wait(10)
    go_on.set()
    found = masks.masks(constrained(4), 1000)
    allowed = np.flatnonzero(np.unpackbits(found.bits[0].view(np.uint8), bitorder="little"))
    assert {vocabulary.tokens[i] for i in allowed.tolist()} == {b"a", b"b"} and not found.errors


def test_tokens_beyond_those_of_the_model_are_no_way_to_go_on(vocabulary):
    """A tokenizer may have tokens that the model has no row for."""
    token = vocabulary.single[ord("q")]
    masks = ConstraintMasks(lambda: vocabulary.matchers)
    masks.join(join(0, "(q|qq)"))
    masks.join(join(1, "[a-z]"))
    for vocab_size, failed in (
        (token, {0}),
        (token + 1, set()),
        (token - token % 32, {0, 1}),
        (10**6, set()),
    ):
        found = masks.masks(constrained(0, 1), vocab_size)
        assert set(found.errors) == failed
    assert "no token of the model" in masks.masks(constrained(0, 1), token).errors[0]


def test_an_error_of_one_row_leaves_the_masks_of_the_others_as_they_are(vocabulary):
    """At once, or when there are too many ways to read what was said."""
    matchers = Matchers(vocabulary.tokenizer, sorted(vocabulary.eos))
    masks, good = ConstraintMasks(lambda: matchers), ConstraintMasks(lambda: matchers)
    rows, said = constrained(*range(5)), int32([vocabulary.single[ord(c)] for c in "aa1ac"])
    patterns = {0: "(a|b)+", 2: "[0-9]+", 4: "[cd]+"}
    for row, pattern in {**patterns, 1: "(a"}.items():
        masks.join(join(row, pattern))
    for row, pattern in patterns.items():
        good.join(join(row, pattern))
    masks.join(JoinRow(3, 3, AMBIGUOUS, 0, 0, [], history_ids=int32([5, 5, 5])))
    failed = set()
    for _ in range(80):
        found, expected = masks.masks(rows, 10**6), good.masks(constrained(0, 2, 4), 10**6)
        np.testing.assert_array_equal(found.bits[[0, 2, 4]], expected.bits)
        failed |= set(found.errors)
        assert 1 in found.errors and not expected.errors
        masks.expect(found, Arrived([said]))
        good.expect(expected, Arrived([said[[0, 2, 4]]]))
    assert failed == {1, 3} == set(found.errors)


def test_tokens_under_way_are_for_those_who_said_them(vocabulary):
    """A row that has been left and joined again meanwhile has another matcher."""
    masks = ConstraintMasks(lambda: vocabulary.matchers)
    masks.join(join(2, "ax|by"))
    first = masks.masks(constrained(2), 10**6)
    masks.expect(first, Arrived([np.array([vocabulary.single[ord("b")]])]))
    masks.leave(2)
    masks.join(join(2, "ax|by", [vocabulary.single[ord("a")]]))
    found = masks.masks(constrained(2), 10**6)
    allowed = np.flatnonzero(np.unpackbits(found.bits[0].view(np.uint8), bitorder="little")).tolist()
    assert [vocabulary.tokens[i] for i in allowed] == [b"x"]
