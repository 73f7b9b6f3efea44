"""Rows with constraints in real rounds: alone, in a crowd, paused, one round ahead of late results, and around failures."""

from __future__ import annotations

import dataclasses
import json
import random
import re

import pytest
from support.checkpoints import make_checkpoint
from support.constrained import SCHEMAS
from support.recording_device import LateArrival, RecordingDevice, start_recorded
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import changed, scheduler_config

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.constraints import limits
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

ROWS, SLOTS = 6, 700
LIMITS = scheduler_config(
    max_total_token_num=SLOTS, max_req_total_len=120, running_max_req_size=ROWS, batch_max_tokens=24,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2],
)  # fmt: skip
PATTERN, ANSWER = r"[a-z ]{8,30}\.", r"(yes|no|maybe), (because|although) [a-zé]{2,9}!"
GRAMMAR = 'root ::= term ("+" term){1,4} "\\n"\nterm ::= [1-9] [0-9]?\n'
PERSON = json.dumps(SCHEMAS["object"][0])
CONSTRAINED = [
    {"regular_constraint": PATTERN},
    {"guided_json": PERSON, "temperature": 0.9, "seed": 5},
    {"guided_grammar": GRAMMAR, "temperature": 1.1, "top_p": 0.9, "seed": 6},
    {"regular_constraint": ANSWER, "frequency_penalty": 0.7, "logit_bias": {104: 3.0}},
    {"regular_constraint": "(ab|c)*", "min_new_tokens": 6, "logit_bias": {2: 50.0}},
    {"guided_json": PERSON, "presence_penalty": 0.3, "logprobs": 3},
    {"guided_json": PERSON, "logprobs": 2, "raw_logprobs": True, "repetition_penalty": 1.2},
    {"regular_constraint": "[0-9]{3,20}", "exponential_decay_length_penalty": (2, 1.3), "top_k": 20,
     "temperature": 0.8, "seed": 7},
]  # fmt: skip
FREE = [
    {},
    {"presence_penalty": 0.7},
    {"temperature": 1.2, "seed": 7},
    {"temperature": 0.9, "top_p": 0.8, "seed": 8},
    {"logit_bias": {17: 2.0}, "min_new_tokens": 4, "logprobs": 2},
]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("constrained") / "model", num_hidden_layers=1)
    return ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=SLOTS, running_max_req_size=ROWS,
        cpu_threads=1, max_req_total_len=120, graph_max_batch_size=4, graph_split_batch_size=2,
        graph_grow_step_size=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def backend(config):
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    return backend


@pytest.fixture(scope="module")
def tokenizer(config):
    return load_tokenizer(config.model_dir)


def crowd(seed=0, count=16):
    """Constrained requests and others, of ragged lengths, that come and go."""
    dice = random.Random(seed)
    wanted = []
    for i in range(count):
        constrained = i % 5 < 3
        kinds = CONSTRAINED if constrained else FREE
        params = {"temperature": 0.0, **kinds[dice.randrange(len(kinds)) if i > 12 else i // 2 % len(kinds)]}
        new = 40 if constrained else dice.randrange(1, 30)
        wanted.append(
            Wanted(
                [dice.randrange(6, 384) for _ in range(dice.randrange(1, 45))],
                SamplingParams(**params, max_new_tokens=new).verify(),
                after_rounds=dice.randrange(60),
            )
        )
    return wanted


@pytest.fixture(scope="module")
def alone(backend):
    """The tokens of each of the crowd with nobody beside it."""
    return [Serving(backend, LIMITS).run([Wanted(w.prompt, w.params)])[0] for w in crowd()]


def check_said(tokenizer, params, tokens, reason):
    """A whole output obeys its constraint; one that was cut obeyed it so far."""
    assert (reason == "stop") == (tokens[-1] == 2)
    if reason != "stop":
        return
    text = tokenizer.decode(tokens[:-1])
    if params.regular_constraint:
        assert re.fullmatch(params.regular_constraint, text), text
    if params.guided_grammar:
        assert re.fullmatch(r"[1-9][0-9]?(\+[1-9][0-9]?){1,4}\n", text), text
    if params.guided_json:
        assert SCHEMAS["object"][1](json.loads(text)), text


def test_every_output_obeys_its_constraint(backend, tokenizer, alone):
    serving = Serving(backend, LIMITS)
    assert serving.run(crowd()) == alone
    ended = 0
    for number, (wanted, tokens) in enumerate(zip(crowd(), alone, strict=True)):
        if wanted.params.constrained:
            check_said(tokenizer, wanted.params, tokens, serving.finished[number].reason)
            ended += serving.finished[number].reason == "stop"
            assert len(tokens) >= wanted.params.min_new_tokens
    assert ended >= 5


def test_requests_go_on_with_the_same_tokens_when_another_scheduler_takes_over(backend, alone):
    """Constrained, penalised, sampled and greedy ones, in the middle of prompts and of answers; rounds are in flight."""
    serving = Serving(backend, LIMITS)
    assert serving.run(crowd(), restarts=[7, 20, 45]) == alone
    assert not serving.failures


@pytest.mark.parametrize("graphs", [True, False])
def test_one_round_ahead_of_late_results_gives_the_same_tokens(config, alone, graphs):
    backend, device = start_recorded(config, late=True, disable_cudagraph=not graphs)
    serving = Serving(backend, LIMITS, late=device.deliver)
    assert serving.run(crowd()) == alone
    assert not serving.failures and (device.replays > 20) == graphs


CROWDED = {
    "pauses": {"max_total_token_num": 170, "schedule_policy": "aggressive"},
    "pauses, no prefix cache": {
        "max_total_token_num": 170,
        "schedule_policy": "aggressive",
        "disable_dynamic_prompt_cache": True,
    },
    "decode rows that take turns": {"batch_max_tokens": 4, "chunked_prefill_size": 4},
    "one row": {"running_max_req_size": 1},
}


@pytest.mark.parametrize("name,late", [*((name, True) for name in CROWDED), ("pauses", False)])
def test_crowded_rounds_give_the_same_tokens(config, backend, alone, name, late):
    """Rows that leave and join again with what they have said, wait for their turn, or follow each other."""
    device = None
    if late:
        backend, device = start_recorded(config, late=True)
    serving = Serving(
        backend, changed(LIMITS, **CROWDED[name]), late=device.deliver if device else lambda: None
    )
    assert serving.run(crowd()) == alone
    assert (serving.scheduler.pauses > 2) == name.startswith("pauses")


def test_rows_that_others_have_left_in_the_middle_of_a_round_start_anew(config, alone):
    """Clients go away while tokens are under way, and their rows are taken at once."""
    backend, device = start_recorded(config, late=True)
    dice = random.Random(3)
    wanted = [
        dataclasses.replace(w, abort_after=dice.randrange(1, 25) if dice.random() < 0.5 else None)
        for w in crowd()
    ]
    serving = Serving(backend, changed(LIMITS, running_max_req_size=3), late=device.deliver)
    for tokens, whole, asked in zip(serving.run(wanted), alone, wanted, strict=True):
        assert tokens == whole[: len(tokens)]
        assert asked.abort_after is not None or tokens == whole
    assert not serving.failures


# -- failures


def failing(method, every, after):
    """Raises at every so many calls: before it does anything, or when it has done all."""
    calls = 0

    def call(*arguments):
        nonlocal calls
        calls += 1
        if calls % every == 0 and not after:
            raise RuntimeError("injected")
        result = method(*arguments)
        if calls % every == 0:
            raise RuntimeError("injected")
        return result

    return call


@pytest.mark.parametrize(
    "place,after", [("forward", False), ("masks", False), ("masks", True), ("sample", True), ("keep", False)]
)
def test_a_round_that_fails_is_repeated_and_nobody_suffers(config, alone, monkeypatch, place, after):
    """Before its masks are made, when matchers have heard the last tokens, and when its own tokens are sampled."""
    backend, _ = start_recorded(config, late=True)
    owner, name = {
        "forward": (backend.model, "forward"),
        "masks": (backend.constraints, "masks"),
        "sample": (backend.sampler, "sample"),
        "keep": (backend.rows, "keep_tokens"),
    }[place]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), 11, after))
    serving = Serving(backend, LIMITS, wait=True)
    assert serving.run(crowd()) == alone
    assert len(serving.failures) > 5
    assert not [finish for finish in serving.finished.values() if finish.reason == "error"]


class BrokenArrivals(RecordingDevice):
    """Every so many results turn out to be an error when they are read: by the masks of the next round."""

    downloads = 0

    def download(self, tensors):
        arrival = super().download(tensors)
        self.downloads += 1
        if self.downloads % 13 == 0 and isinstance(arrival, LateArrival):
            arrival.error = RuntimeError("an error of the device")
        return arrival


def test_tokens_that_never_arrive_fail_both_rounds_and_nobody_suffers(config, alone):
    device = BrokenArrivals(late=True)
    backend = ModeBackend(config, 0, 1, open_device=lambda name, index: device)
    backend.init_model()
    device.under_way.clear()

    serving = Serving(backend, LIMITS, wait=True)
    assert serving.run(crowd()) == alone
    assert len(serving.failures) > 3


ERRORS = {
    "a token that is not there": ('start: "a" <[99999999]>', "oken range", 0),
    "too many ways to read it": ('start: s\ns: s s s | s s | "a" | "b" | "c"', "items", 5),
}


@pytest.mark.parametrize("name", ERRORS)
def test_a_constraint_that_cannot_be_followed_ends_its_request_only(config, alone, monkeypatch, name):
    """The Http Server sees most of them; a matcher may find out in the middle of an output."""
    grammar, message, said = ERRORS[name]
    monkeypatch.setitem(limits.PARSER_LIMITS, "max_items_in_row", 40)
    backend, device = start_recorded(config, late=True)
    params = SamplingParams(
        temperature=0.0, guided_grammar=grammar, max_new_tokens=90, logit_bias={2: -100.0}
    )
    doomed = [Wanted([9, 10, 11], params, n) for n in (0, 9, 20)]
    serving = Serving(backend, LIMITS, late=device.deliver)
    count = len(crowd())
    tokens = serving.run(crowd() + doomed)
    assert tokens[:count] == alone and not serving.failures
    for number in range(count, count + 3):
        finish = serving.finished[number]
        assert (finish.reason, finish.error_type) == ("error", "InvalidParameter")
        assert message in finish.error and "non-verbose" not in finish.error
        assert len(tokens[number]) >= said
    assert {serving.finished[i].reason for i in range(count)} <= {"stop", "length"}


def test_a_server_without_constraints_says_so_and_serves_the_others(config):
    backend = ModeBackend(dataclasses.replace(config, output_constraint_mode="none"), 0, 1)
    backend.init_model()
    serving = Serving(backend, LIMITS)
    free = Wanted([7, 8, 9], SamplingParams(temperature=0.0, max_new_tokens=9, ignore_eos=True))
    bound = Wanted([7, 8, 9], SamplingParams(temperature=0.0, regular_constraint="a+"))
    tokens = serving.run([free, bound, free])
    assert tokens[0] == tokens[2] and len(tokens[0]) == 9 and tokens[1] == []
    assert "--output_constraint_mode none" in serving.finished[1].error


def test_a_tokenizer_that_cannot_be_read_does_not_stop_a_backend(config, tmp_path):
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=1)
    (path / "tokenizer.json").write_text("{")
    backend = ModeBackend(dataclasses.replace(config, model_dir=str(path)), 0, 1)
    backend.init_model()
    serving = Serving(backend, LIMITS)
    serving.run([Wanted([7], SamplingParams(temperature=0.0, regular_constraint="a+"))])
    assert "tokenizer cannot be read" in serving.finished[0].error
