"""One request that cannot be prepared, or of which the model makes no numbers: it ends alone, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.checkpoints import make_checkpoint
from support.model_zoo import read_tensors, write_checkpoint
from support.recording_device import start_recorded
from support.reward_models import make_reward_model
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import scheduler_config

from lightllm.backend import sampler as sampler_module
from lightllm.backend.mode_backend import ModeBackend
from lightllm.backend.row_state import Feature
from lightllm.config import ServerConfig
from lightllm.protocol.rounds import JoinRow
from lightllm.sampling_params import SamplingParams

ROWS, SLOTS = 6, 700
LIMITS = scheduler_config(
    max_total_token_num=SLOTS, max_req_total_len=150, running_max_req_size=ROWS, batch_max_tokens=32,
    chunked_prefill_size=16, max_waiting_requests=100, eos_token_ids=[2], worth_waiting=2,
)  # fmt: skip
POISON = 200
"""The token whose embedding holds NaN in the broken checkpoint."""
CULPRIT = 77
"""The seed of the request that cannot be prepared."""
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0, "logprobs": -1},
    {"temperature": 0.9, "seed": 3},
    {"temperature": 1.1, "seed": 4, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 0.0, "frequency_penalty": 0.7, "logit_bias": {17: 2.0}, "logprobs": 2, "raw_logprobs": True},
    {"temperature": 0.8, "seed": 5, "regular_constraint": "[a-zé ]{12,18}!"},
    {"temperature": 0.0, "prompt_logprobs": 1, "min_new_tokens": 3},
]  # fmt: skip


def wanted(prompt: list[int], after: int = 0, **params: Any) -> Wanted:
    return Wanted(
        prompt, SamplingParams(**{"max_new_tokens": 12, "ignore_eos": True} | params).verify(), after
    )


def neighbours() -> list[Wanted]:
    prompts = [[(7 * i + n) % 180 + 6 for i in range(3 + 9 * n)] for n in range(len(KINDS))]
    return [
        wanted(prompt, 2 * n, **kind) for n, (prompt, kind) in enumerate(zip(prompts, KINDS, strict=True))
    ]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    path = make_checkpoint(tmp_path_factory.mktemp("rows") / "model", num_hidden_layers=2)
    tensors = load_file(path / "model.safetensors")
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    return ServerConfig(
        model_dir=str(path), data_type="fp32", device="cpu", max_total_token_num=SLOTS, running_max_req_size=ROWS,
        cpu_threads=1, max_req_total_len=150,
    )  # fmt: skip


@pytest.fixture(scope="module")
def started(config: ServerConfig) -> ModeBackend:
    backend = ModeBackend(config, 0, 1)
    backend.init_model()
    return backend


@pytest.fixture(scope="module")
def alone(started: ModeBackend) -> list[list[int]]:
    """The tokens of the neighbours with nobody else around."""
    return [
        Serving(started, LIMITS).run([dataclasses.replace(one, after_rounds=0)])[0] for one in neighbours()
    ]


def check(serving: Serving, others: list[Wanted], alone: list[list[int]]) -> list[Any]:
    """The neighbours say what they say alone, in rounds that all succeed; how the others end."""
    tokens = serving.run(neighbours() + others)
    assert tokens[: len(alone)] == alone and not serving.failures
    assert serving.scheduler.snapshot().slots_used == 0
    return [serving.finished[number] for number in range(len(alone), len(tokens))]


# -- requests that cannot be prepared


def breaks(method: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    def call(join: JoinRow, *arguments: Any) -> Any:
        if join.seed == CULPRIT:
            raise error
        return method(join, *arguments)

    return call


CULPRITS = [
    {"temperature": 0.9, "seed": CULPRIT},
    {"temperature": 0.0, "seed": CULPRIT, "frequency_penalty": 0.5, "logit_bias": {3: 1.0}},
    {"temperature": 0.9, "seed": CULPRIT, "regular_constraint": "[a-z]{3,9}", "prompt_logprobs": 2},
]


@pytest.mark.parametrize(
    ("place", "late"),
    [("rows.join", False), ("rows.join", True), ("constraints.join", True), ("rows._join_counts", False)],
)
def test_a_request_that_cannot_be_taken_in_ends_alone(
    config: ServerConfig, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch, place: str, late: bool
) -> None:
    backend, device = start_recorded(config, late=late)
    owner, name = place.split(".")
    error = OverflowError("Python int too large to convert to C long")
    monkeypatch.setattr(getattr(backend, owner), name, breaks(getattr(getattr(backend, owner), name), error))
    serving = Serving(backend, LIMITS, late=device.deliver)
    others = [wanted([9] * 40, n, **params) for n, params in enumerate(CULPRITS)]
    if place == "rows._join_counts":  # only those with penalties come there
        others = others[1:2]
    for finish in check(serving, others, alone):
        assert (finish.reason, finish.error_type, finish.output_tokens) == ("error", "BackendFailed", 0)
        assert "could not prepare this request" in finish.error
    assert serving.scheduler.snapshot().row_failures == len(others)


def test_a_request_for_which_nothing_can_be_planned_ends_alone(
    config: ServerConfig, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    backend, device = start_recorded(config)
    make_plan = sampler_module.make_plan

    def failing(state: Any, rows: Any, where: Any) -> Any:
        if ((state.seed[rows] == CULPRIT) & (state.features[rows] & Feature.RANDOM != 0)).any():
            raise KeyError("no such list")
        return make_plan(state, rows, where)

    monkeypatch.setattr(sampler_module, "make_plan", failing)
    serving = Serving(backend, LIMITS)
    others = [wanted([9] * 40, n, temperature=0.9, seed=CULPRIT) for n in (0, 5)]
    for finish in check(serving, others, alone):
        assert (finish.reason, finish.error_type, finish.output_tokens) == ("error", "BackendFailed", 0)


def test_an_exception_while_a_row_is_sampled_ends_that_request_alone(
    config: ServerConfig, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can say whose it is: the rounds fail, until the Router has found it."""
    backend, _ = start_recorded(config)
    sample = backend.sampler.sample

    def failing(logits: torch.Tensor, plan: Any, *arguments: Any) -> Any:
        if (backend.rows.seed[plan.rows] == CULPRIT).any():
            raise RuntimeError("injected")
        return sample(logits, plan, *arguments)

    monkeypatch.setattr(backend.sampler, "sample", failing)
    serving = Serving(backend, LIMITS)
    culprit = wanted([9] * 40, 3, temperature=0.9, seed=CULPRIT)
    assert serving.run([*neighbours(), culprit])[: len(alone)] == alone
    assert serving.finished[len(alone)].reason == "error"
    assert 3 <= len(serving.failures) <= 9


@pytest.mark.parametrize("error", [MemoryError("injected"), torch.OutOfMemoryError("injected")])
def test_running_out_of_memory_is_no_fault_of_a_row(
    config: ServerConfig, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    backend, _ = start_recorded(config)
    join, calls = backend.rows.join, iter(range(1000))

    def failing(row: JoinRow) -> None:
        if next(calls) == 3:
            raise error
        join(row)

    monkeypatch.setattr(backend.rows, "join", failing)
    serving = Serving(backend, LIMITS)
    assert serving.run(neighbours()) == alone
    assert len(serving.failures) == 1 and "injected" in serving.failures[0]


# -- logits that are no numbers


def poisoned(length: int, at: int) -> list[int]:
    prompt = [(5 * i) % 150 + 10 for i in range(length)]
    prompt[at] = POISON
    return prompt


@pytest.mark.parametrize(
    ("kind", "late"), [*((kind, False) for kind in KINDS), (KINDS[0], True), (KINDS[2], True)], ids=str
)
def test_a_request_without_numbers_ends_alone_with_an_error(
    config: ServerConfig, started: ModeBackend, alone: list[list[int]], kind: dict[str, Any], late: bool
) -> None:
    backend, device = start_recorded(config, late=True) if late else (started, None)
    serving = Serving(backend, LIMITS, late=device.deliver if device else lambda: None)
    others = [wanted(poisoned(60, at), n, **kind) for n, at in enumerate((0, 20, 59))]
    others.append(wanted([POISON], 4, **kind))
    for finish in check(serving, others, alone):
        assert (finish.reason, finish.error_type, finish.output_tokens) == ("error", "BackendFailed", 0)
        assert "NaN" in finish.error and "--data_type" in finish.error
    assert serving.scheduler.snapshot().not_finite == 4


def cached(serving: Serving, prompt: list[int]) -> int:
    """Tokens of the prompt that the prefix cache holds, by asking for it."""
    serving.run([wanted(prompt, temperature=0.0, max_new_tokens=1)])
    return serving.finished[0].cached_tokens


def test_nothing_of_it_stays_in_the_prefix_cache(started: ModeBackend) -> None:
    serving = Serving(started, LIMITS)
    broken = poisoned(60, 40)
    assert cached(serving, broken[:30]) == 0
    for _ in range(3):
        assert cached(serving, broken) == 30, "what was computed before the NaN was seen is read by others"
    assert cached(serving, broken[:40]) == 30 and cached(serving, broken[:40]) == 39
    assert cached(serving, poisoned(60, 0)) == 0 == cached(serving, poisoned(60, 0))


def test_who_shares_a_prefix_with_it_meanwhile_is_not_disturbed(started: ModeBackend) -> None:
    """The others prefill behind chunks that it computed, and that nobody has vouched for when it fails."""
    sound = [(5 * i) % 150 + 10 for i in range(32)]
    asked = [wanted([*sound, POISON, *range(10, 40)], temperature=0.0)]
    asked += [wanted([*sound, *range(20 + n, 50 + n)], 1 + n, temperature=0.0) for n in range(3)]
    expected = [Serving(started, LIMITS).run([one])[0] for one in asked[1:]]
    serving = Serving(started, LIMITS)
    assert serving.run(asked)[1:] == expected
    assert serving.finished[0].reason == "error"
    assert any(serving.finished[n].cached_tokens for n in (1, 2, 3))


def test_a_request_that_loses_its_numbers_in_the_middle_keeps_what_it_said(
    config: ServerConfig, started: ModeBackend, tmp_path: Path
) -> None:
    """Greedy output that is led to the broken token by a bias: the tokens before it are sent, the finish is an error."""
    serving = Serving(started, LIMITS)
    start = wanted([9] * 20, temperature=0.0, logit_bias={POISON: 100.0}, max_new_tokens=9)
    assert serving.run([start]) == [[POISON]]
    assert (serving.finished[0].reason, serving.finished[0].output_tokens) == ("error", 1)
    assert cached(serving, [9] * 20) == 19  # the prompt itself was sound
    assert cached(serving, [*[9] * 20, POISON, 10]) == 20


@pytest.mark.parametrize(
    ("tensor", "value"), [("model.norm.weight", float("nan")), ("model.norm.weight", float("inf"))]
)
def test_where_the_whole_model_makes_no_numbers_every_request_says_so(
    config: ServerConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, tensor: str, value: float
) -> None:
    tensors = load_file(Path(config.model_dir or "") / "model.safetensors")
    tensors[tensor].view(-1)[3] = value
    path = make_checkpoint(tmp_path / "model", num_hidden_layers=2)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})
    backend = ModeBackend(dataclasses.replace(config, model_dir=str(path)), 0, 1)
    backend.init_model()
    serving = Serving(backend, LIMITS)
    assert serving.run(neighbours()) == [[]] * len(KINDS)
    assert {finish.error_type for finish in serving.finished.values()} == {"BackendFailed"}
    assert serving.failures == []
    lines = [record for record in caplog.records if "NaN" in record.getMessage()]
    assert len(lines) == 1 + len(KINDS)  # one of the warm-up rounds, and one a request


def test_a_score_that_is_no_number_is_an_error(config: ServerConfig, tmp_path: Path) -> None:
    make_reward_model(tmp_path, "Qwen2ForRewardModel")
    tensors = read_tensors(tmp_path)
    tensors["model.embed_tokens.weight"][POISON] = float("nan")
    raw = json.loads((tmp_path / "config.json").read_text())
    write_checkpoint(tmp_path, tensors, raw)
    backend = ModeBackend(dataclasses.replace(config, model_dir=str(tmp_path), use_reward_model=True), 0, 1)
    backend.init_model()
    serving = Serving(backend, LIMITS)
    prompts = [[9, 10, 11], [9, POISON, 11], [12, 13]]
    serving.run([wanted(prompt, temperature=0.0, max_new_tokens=1) for prompt in prompts])
    assert [serving.finished[n].reason for n in range(3)] == ["stop", "error", "stop"]
    assert serving.scheduler.snapshot().not_finite == 1
