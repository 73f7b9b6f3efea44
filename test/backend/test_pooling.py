"""Models for vectors: the parts of each prompt's vector add up to what transformers computes, however it was cut and disturbed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.pooling_models import Reference, make_classifier, make_embedding_model, make_judge
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import changed

from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.models.tasks import resolve_task
from lightllm.router.scheduler_config import SchedulerConfig, resolve
from lightllm.sampling_params import SamplingParams

SLOTS, LONGEST = 400, 150
PARAMS = SamplingParams(do_sample=False, max_new_tokens=1, ignore_eos=True, logprobs=-1)
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 100, LONGEST, LONGEST)


class Model(NamedTuple):
    backend: ModeBackend
    limits: SchedulerConfig
    reference: Reference

    def check(self, prompts: list[list[int]], limits: SchedulerConfig, **run: Any) -> Serving:
        serving = Serving(self.backend, limits)
        serving.run([Wanted(prompt, PARAMS, n % 5) for n, prompt in enumerate(prompts)], **run)
        for number, prompt in enumerate(prompts):
            assert serving.finished[number].reason == "stop"
            expected = self.reference(prompt)
            np.testing.assert_allclose(
                serving.pooled[number], expected, rtol=0, atol=2e-5 * abs(expected).max()
            )
        assert (
            serving.scheduler.snapshot().slots_used == 0 and serving.scheduler.snapshot().output_tokens == 0
        )
        return serving


def prompts_of(*lengths: int) -> list[list[int]]:
    return [[(11 * i + 7 * (n // 2)) % 370 + 6 for i in range(length)] for n, length in enumerate(lengths)]


MAKERS: dict[str, Callable[[Path], Reference]] = {
    "last": make_embedding_model,
    "mean": functools.partial(make_embedding_model, method="mean"),
    "first": functools.partial(make_embedding_model, method="first"),
    "labels": make_classifier,
    "judge": make_judge,
}


@pytest.fixture(scope="module", params=MAKERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("pooling") / "model"
    reference = MAKERS[request.param](folder)
    config = ServerConfig(
        model_dir=str(folder), data_type="fp32", device="cpu", max_total_token_num=SLOTS, running_max_req_size=6,
        cpu_threads=1, max_req_total_len=LONGEST, task=resolve_task(str(folder), "auto"), batch_max_tokens=32,
        chunked_prefill_size=16,
    )  # fmt: skip
    backend = ModeBackend(config, 0, 1)
    ready = backend.init_model()
    return Model(backend, resolve(config, ready.max_total_token_num, "cpu", 1024, [2]), reference)


@pytest.mark.parametrize("chunk", [5, 16, 200])
def test_vectors_of_prompts_in_chunks_are_those_of_whole_prompts(model: Model, chunk: int) -> None:
    limits = changed(model.limits, chunked_prefill_size=chunk, batch_max_tokens=max(32, chunk))
    model.check(prompts_of(*LENGTHS), limits)


def test_a_cached_prefix_is_used_where_the_last_token_alone_counts(model: Model) -> None:
    prompt = prompts_of(90)[0]
    serving = model.check([prompt, prompt[:80], [*prompt, 9]] * 2, model.limits)
    cached = [serving.finished[number].cached_tokens for number in range(6)]
    assert any(cached) == model.limits.prompt_cache == (not model.limits.whole_prompts_read)


def test_rounds_that_fail_add_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    forward, calls = model.backend.model.forward, iter(range(10_000))

    def sometimes(batch: Any) -> torch.Tensor:
        outputs = forward(batch)
        if next(calls) % 4 == 2:
            raise RuntimeError("the device does not like this one")
        return outputs

    monkeypatch.setattr(model.backend.model, "forward", sometimes)
    serving = model.check(prompts_of(*LENGTHS), model.limits, restarts=[5, 9])
    assert serving.failures


def test_an_aborted_prompt_leaves_nothing(model: Model) -> None:
    serving = Serving(model.backend, model.limits)
    wanted = [Wanted(prompt, PARAMS) for prompt in prompts_of(LONGEST, 40, LONGEST)]
    serving.run([dataclasses.replace(wanted[0], abort_after=2), *wanted[1:]])
    assert serving.finished[0].reason == "abort" and 0 not in serving.pooled
    assert serving.scheduler.snapshot().slots_used == 0
    assert sorted(serving.pooled) == [1, 2]


def test_a_vector_of_no_numbers_ends_its_request_alone(model: Model) -> None:
    weight = model.backend.model.embed_tokens.weight
    with torch.inference_mode():
        kept = weight[300].clone()
        weight[300] = float("nan")
        serving = Serving(model.backend, model.limits)
        serving.run([Wanted(prompt, PARAMS) for prompt in ([300, 8, 9], [7, 8, 9], [10])])
        weight[300] = kept
    assert [serving.finished[number].reason for number in range(3)] == ["error", "stop", "stop"]
    np.testing.assert_allclose(serving.pooled[1], model.reference([7, 8, 9]), atol=1e-4)
