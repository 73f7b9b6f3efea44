"""Every architecture computes what its reference computes: logits, greedy tokens, for any chunking, batch and slots."""

from __future__ import annotations

import functools
import itertools
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.model_driver import ModelDriver
from support.model_zoo import NAMES, VOCAB, ZOO, ZooModel, make_zoo_model
from support.near_tie import assert_rounded_like, relative_error
from support.ranks import run_ranks

from lightllm.distributed.tp_group import TpGroup
from lightllm.errors import InvalidOption
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.base import TpPartBaseModel
from lightllm.models.registry import find_class, load_model

PROMPT = [(17 * i + 3) % 380 for i in range(70)]
LENGTHS = (70, 1, 2, 15, 16, 17, 33, 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @functools.cache
    def make(name: str, dtype: str = "float32") -> tuple[TpPartBaseModel, ZooModel]:
        zoo_model = make_zoo_model(tmp_path_factory.mktemp("model"), name, dtype)
        model = load_model(str(zoo_model.path), data_type=None, device=CPU, max_len=zoo_model.max_len)
        return model, zoo_model

    return make


def assert_greedy(zoo_model: ZooModel, prompt: list[int], tokens: list[int]) -> None:
    """`tokens` are the reference's own greedy choices: each is its best after the prompt and the tokens before."""
    logits = zoo_model.reference(prompt + tokens)[len(prompt) - 1 : -1]
    assert logits.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_the_reference_in_chunks_of_seven(pair: Any, name: str) -> None:
    model, zoo_model = pair(name)
    expected = zoo_model.reference(PROMPT)
    driver = ModelDriver(model, shuffled=True)
    logits = torch.cat([driver.step([(1, PROMPT[start : start + 7])]) for start in range(0, len(PROMPT), 7)])
    assert logits.shape == (len(PROMPT), VOCAB)
    assert relative_error(logits, expected) <= 1e-4


@pytest.mark.parametrize("steps", [40, pytest.param(64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_greedy_tokens_of_ragged_requests_together_equal_the_reference(
    pair: Any, name: str, steps: int
) -> None:
    """Eight requests decode together; the second half of them reads the first one's prompt from its slots."""
    model, zoo_model = pair(name)
    driver = ModelDriver(model, rows=len(LENGTHS), max_len=160, shuffled=True)
    prompts = [PROMPT[:length] for length in LENGTHS]
    outputs = []
    for row, prompt in enumerate(prompts):
        cached = len(prompt) - 1 if row >= len(LENGTHS) // 2 else 0
        driver.share_prefix(0, row, cached)
        outputs.append([int(driver.step([(row, prompt[cached:])])[-1].argmax())])
    while len(outputs[0]) < steps:
        work = [(row, output[-1:]) for row, output in enumerate(outputs)]
        for output, logits in zip(outputs, driver.step(work, num_decode=len(work)), strict=True):
            output.append(int(logits.argmax()))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert_greedy(zoo_model, prompt, output)
    assert len({token for output in outputs for token in output}) > 4


@pytest.fixture(scope="module")
def rounded_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ZooModel]:
    """A checkpoint in bfloat16 whose weights do not amplify rounding."""
    return functools.cache(
        lambda name: make_zoo_model(tmp_path_factory.mktemp("model"), name, "bfloat16", std=0.1)
    )


@pytest.mark.parametrize(
    ("name", "arithmetic"),
    [
        pytest.param(name, arithmetic, marks=() if (number + turn) % 2 else pytest.mark.slow)
        for number, name in enumerate(NAMES)
        for turn, arithmetic in enumerate(ARITHMETICS)
    ],
)
def test_bfloat16_weights_are_as_near_to_float32_as_the_references(
    monkeypatch: pytest.MonkeyPatch, rounded_model: Callable[[str], ZooModel], name: str, arithmetic: str
) -> None:
    """Prompts in chunks, then decode steps of one request, and of five together."""
    compute_bf16_weights_in(monkeypatch, arithmetic)
    zoo_model = rounded_model(name)
    model = load_model(str(zoo_model.path), data_type=None, device=CPU, max_len=zoo_model.max_len)
    assert model.kv_dtype == getattr(torch, arithmetic)
    driver, rows = ModelDriver(model, rows=5, shuffled=True), range(5)
    steps = [driver.step([(0, PROMPT[start : start + 7])]) for start in range(0, 49, 7)]
    steps += [driver.step([(0, [token])], num_decode=1) for token in PROMPT[49:56]]
    for row in rows[1:]:
        driver.share_prefix(0, row, 56)
    together = [driver.step([(row, [token]) for row in rows], num_decode=5) for token in PROMPT[56:]]
    logits = torch.cat(steps + [step[row : row + 1] for row, step in zip(itertools.cycle(rows), together)])
    whole = zoo_model.reference(PROMPT)
    assert_rounded_like(logits, zoo_model.half(PROMPT), whole, routed=model.config.moe is not None)
    if arithmetic == "float32":
        assert relative_error(logits, whole) <= 1e-4


@pytest.mark.parametrize("name", ["llama", "olmo2", "gpt-oss"])
def test_a_norm_rounds_where_the_publishers_does(
    monkeypatch: pytest.MonkeyPatch, rounded_model: Callable[[str], ZooModel], name: str
) -> None:
    """Before and after the weight is applied (Llama and most others), or only after it."""
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRMSNorm
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

    compute_bf16_weights_in(monkeypatch, "bfloat16")
    norm = load_model(str(rounded_model(name).path), data_type=None, device=CPU).norm
    theirs = {"llama": LlamaRMSNorm, "olmo2": Olmo2RMSNorm, "gpt-oss": GptOssRMSNorm}[name](64, norm.eps)
    theirs.weight.data = norm.weight.bfloat16()
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    result, expected = norm(x), theirs(x)
    assert result.dtype == expected.dtype == torch.bfloat16
    assert float((result == expected).double().mean()) > 0.995


def test_dynamic_rope_is_that_of_transformers_for_a_prompt_of_the_served_length(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    zoo_model = make_zoo_model(tmp_path, "llama", max_position_embeddings=32, rope_parameters=rope)
    expected = zoo_model.reference(PROMPT)
    with caplog.at_level(logging.INFO, "lightllm"):
        served = load_model(str(tmp_path), data_type=None, device=CPU, max_len=len(PROMPT))
    assert "rope dynamic" in caplog.text and "--max_req_total_len 32" in caplog.text
    assert relative_error(ModelDriver(served).step([(0, PROMPT)]), expected) <= 1e-4
    short = load_model(str(tmp_path), data_type=None, device=CPU)
    assert relative_error(ModelDriver(short).step([(0, PROMPT)]), expected) > 1e-2
    prompt = PROMPT[:31]
    assert relative_error(ModelDriver(short).step([(0, prompt)]), zoo_model.reference(prompt)) <= 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_need_only_the_config(pair: Any, tmp_path: Path, name: str) -> None:
    _, zoo_model = pair(name)
    (tmp_path / "config.json").write_text((zoo_model.path / "config.json").read_text())
    model = load_model(
        str(tmp_path), data_type="fp32", device=CPU, load_way="dummy", max_len=zoo_model.max_len
    )
    logits = ModelDriver(model).step([(0, PROMPT)])
    assert logits.shape == (len(PROMPT), VOCAB) and not logits.isnan().any()
    assert float(logits[logits.isfinite()].std()) > 0


def test_learned_positions_end_a_launch_that_wants_more_of_them(tmp_path: Path) -> None:
    make_zoo_model(tmp_path, "starcoder")
    with pytest.raises(InvalidOption, match="max_req_total_len 257: this model has learned 256 positions"):
        load_model(str(tmp_path), data_type=None, device=CPU, max_len=257)


TWO_RANKS = [
    name for name in NAMES if name not in ("qwen2", "qwen2, window", "phi3, short", "bloom, prefixed")
]


@pytest.mark.parametrize("name", TWO_RANKS)
def test_two_ranks_compute_what_one_computes(pair: Any, tmp_path: Path, name: str) -> None:
    _, zoo_model = pair(name)
    expected = zoo_model.reference(PROMPT)

    def work(group: TpGroup) -> torch.Tensor:
        model = load_model(
            str(zoo_model.path), data_type=None, device=CPU, group=group, max_len=zoo_model.max_len
        )
        return ModelDriver(model).step([(0, PROMPT)])

    first, second = run_ranks(tmp_path, 2, work)
    assert relative_error(first, expected) <= 1e-4
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["olmo2", "cohere, qk norm", "chatglm", "internlm2", "starcoder", "gemma3"])
def test_four_ranks_share_two_kv_heads(pair: Any, tmp_path: Path, name: str) -> None:
    _, zoo_model = pair(name)

    def work(group: TpGroup) -> torch.Tensor:
        model = load_model(str(zoo_model.path), data_type=None, device=CPU, group=group)
        return ModelDriver(model).step([(0, PROMPT)])

    for logits in run_ranks(tmp_path, 4, work):
        assert relative_error(logits, zoo_model.reference(PROMPT)) <= 1e-4


WITHOUT = """
import sys
from lightllm.models.architectures import ARCHITECTURES
from lightllm.models.registry import find_class

names = {known.module_name for known in ARCHITECTURES.values()}
assert not names & set(sys.modules), "an architecture is imported before it is needed"
for broken in sorted(names):
    for name in names:
        sys.modules.pop(name, None)
    sys.modules[broken] = None  # importing it raises
    for architecture, known in ARCHITECTURES.items():
        if known.module_name == broken:
            try:
                find_class(architecture)
            except ImportError:
                continue
            raise AssertionError(f"{broken} was imported")
        elif known.module != "reward":  # which is made of two others
            find_class(architecture)
"""


def test_an_architecture_that_cannot_be_imported_hurts_no_other() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT], check=True)


def test_every_architecture_is_in_the_zoo_and_has_a_class() -> None:
    in_zoo = {entry.architecture for entry in ZOO.values()} | {"Phi3SmallForCausalLM"}
    assert in_zoo == {name for name, known in ARCHITECTURES.items() if not known.scores}
    for name in ARCHITECTURES:
        assert issubclass(find_class(name), TpPartBaseModel)
