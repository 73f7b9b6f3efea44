"""Llama and Qwen3 compute what transformers computes: logits, greedy tokens, for any chunking, batch and slots."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from support.arithmetic import ARITHMETICS, compute_bf16_weights_in
from support.checkpoints import make_checkpoint
from support.model_driver import ModelDriver
from support.near_tie import assert_rounded_like, assert_same_or_near_tie, near_tie

from lightllm.models.registry import load_model

LLAMA3_ROPE = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "multi-query, bias": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "multi-query, attention bias": {"num_key_value_heads": 1, "attention_bias": True},
    "grouped, tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "multi-head, odd sizes": {
        "num_key_value_heads": 8,
        "head_dim": 24,
        "vocab_size": 389,
        "num_hidden_layers": 3,
    },
    "llama3 rope": {"rope_scaling": LLAMA3_ROPE},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
}
CASES = [("llama", name) for name in SHAPES if name != "multi-query, attention bias"] + [
    ("qwen3", "multi-query, attention bias"),
    ("qwen3", "grouped, tied"),
]
PROMPT = [(17 * i + 3) % 380 for i in range(70)]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(model of ours in a dtype, model of transformers) for a case, made once."""
    from transformers import AutoModelForCausalLM

    @functools.cache
    def make(architecture: str, shape: str, dtype: str = "float32") -> Any:
        path = make_checkpoint(
            tmp_path_factory.mktemp("model"), architecture, dtype=dtype, **SHAPES.get(shape, {})
        )
        ours = load_model(str(path), data_type=None, device=CPU)
        return ours, AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    return make


def generate(reference: Any, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    output = reference.generate(
        ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, eos_token_id=None
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(("architecture", "shape"), CASES)
def test_logits_of_every_position_equal_transformers(pair: Any, architecture: str, shape: str) -> None:
    model, reference = pair(architecture, shape)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]
    logits = ModelDriver(model).step([(1, PROMPT)])
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize(("architecture", "shape"), CASES)
@pytest.mark.parametrize("chunk", [16, 4096])
def test_greedy_tokens_equal_generate(pair: Any, architecture: str, shape: str, chunk: int) -> None:
    model, reference = pair(architecture, shape)
    tokens = ModelDriver(model, shuffled=chunk == 16).greedy(2, PROMPT, 24, chunk)
    assert tokens == generate(reference, PROMPT, 24)
    assert len(set(tokens)) > 4


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_a_request_among_32_others_has_the_tokens_it_has_alone(pair: Any, architecture: str) -> None:
    model, reference = pair(architecture, "grouped, tied")
    driver = ModelDriver(model, rows=33, max_len=96)
    prompts = [PROMPT[: 1 + 2 * row] for row in range(33)]
    last = []
    for row, prompt in enumerate(prompts):
        last.append(int(driver.step([(row, prompt)])[-1].argmax()))
    outputs = [[token] for token in last]
    for _ in range(11):
        logits = driver.step([(row, [output[-1]]) for row, output in enumerate(outputs)], num_decode=33)
        for output, row_logits in zip(outputs, logits):
            output.append(int(row_logits.argmax()))
    alone = ModelDriver(model, rows=33, max_len=96, shuffled=True)
    for row in (0, 7, 20, 32):
        assert outputs[row] == alone.greedy(row, prompts[row], 12)
    assert outputs[32] == generate(reference, prompts[32], 12)


def test_prefill_chunks_beside_decode_rows_do_not_touch_each_other(pair: Any) -> None:
    model, _ = pair("llama", "grouped, tied")
    alone = ModelDriver(model)
    expected_decode, expected_chunk = alone.greedy(0, PROMPT[:9], 3), alone.step([(1, PROMPT)])[-1]
    mixed = ModelDriver(model)
    first = int(mixed.step([(0, PROMPT[:9])])[-1].argmax())
    logits = mixed.step([(0, [first]), (1, PROMPT[:33])], num_decode=1)
    second = int(logits[0].argmax())
    logits = mixed.step([(0, [second]), (1, PROMPT[33:])], num_decode=1)
    assert [first, second, int(logits[0].argmax())] == expected_decode
    torch.testing.assert_close(logits[-1], expected_chunk, rtol=1e-4, atol=1e-3)


@pytest.fixture(scope="module")
def half_pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(checkpoint, model of transformers in float32, the same in the checkpoint's dtype): what rounding costs them."""
    from transformers import AutoModelForCausalLM

    @functools.cache
    def make(architecture: str, dtype: str) -> Any:
        path = make_checkpoint(
            tmp_path_factory.mktemp("model"), architecture, dtype=dtype, std=0.1, **SHAPES["grouped, tied"]
        )
        return path, *(
            AutoModelForCausalLM.from_pretrained(path, dtype=each)
            for each in (torch.float32, getattr(torch, dtype))
        )

    return make


@pytest.mark.parametrize(
    ("architecture", "dtype", "arithmetic"),
    [(name, "bfloat16", arithmetic) for name in ("llama", "qwen3") for arithmetic in ARITHMETICS]
    + [("llama", "float16", "float32")],
)
def test_half_precision_parts_from_float32_only_at_near_ties(
    monkeypatch: pytest.MonkeyPatch, half_pair: Any, architecture: str, dtype: str, arithmetic: str
) -> None:
    compute_bf16_weights_in(monkeypatch, arithmetic)
    path, reference, half = half_pair(architecture, dtype)
    model = load_model(str(path), data_type=None, device=CPU)
    assert model.dtype == getattr(torch, dtype) and model.activation_dtype == getattr(torch, arithmetic)
    expected = generate(reference, PROMPT, 24)
    with torch.inference_mode():
        ids = torch.tensor([PROMPT + expected])
        whole, rounded = (each(ids).logits[0].float() for each in (reference, half))
    assert_rounded_like(ModelDriver(model).step([(0, PROMPT + expected)]), rounded, whole)
    chosen = whole[len(PROMPT) - 1 :]
    tokens = ModelDriver(model).greedy(0, PROMPT, 24)
    assert_same_or_near_tie(tokens, expected, lambda step: chosen[step], near_tie(rounded, whole))


def test_what_is_worse_than_the_reference_in_its_own_dtype_is_refused() -> None:
    whole = torch.randn(20, 50)
    half, noise = whole + 0.01 * torch.randn(20, 50), torch.randn(20, 50)
    assert_rounded_like(whole + 0.013 * noise, half, whole)
    with pytest.raises(AssertionError, match="the reference's own"):
        assert_rounded_like(whole + 0.02 * noise, half, whole)
    with pytest.raises(AssertionError, match="of no use"):
        assert_rounded_like(whole + 0.1 * noise, whole + 0.1 * noise, whole)
    few = whole.clone()
    few[3] = noise[3]
    assert_rounded_like(few, half, whole, routed=True)
    with pytest.raises(AssertionError, match="the reference's own"):
        assert_rounded_like(few, half, whole)


def test_near_tie_helper_refuses_a_clear_difference() -> None:
    with pytest.raises(AssertionError, match="step 1"):
        assert_same_or_near_tie([5, 2], [5, 1], lambda step: torch.tensor([0.0, 10.0, 9.0]), 0.5)
    assert_same_or_near_tie([5, 2], [5, 1], lambda step: torch.tensor([0.0, 10.0, 9.9]), 0.5)


def test_only_the_positions_asked_for_get_logits(pair: Any) -> None:
    model, _ = pair("llama", "grouped, tied")
    every = ModelDriver(model).step([(0, PROMPT)])
    seen = model.lm_head
    sizes = []
    model.lm_head = lambda x: sizes.append(len(x)) or seen(x)
    try:
        driver = ModelDriver(model)
        original = model.forward

        def last_only(batch: Any) -> torch.Tensor:
            batch.logit_index = torch.tensor([len(batch.input_ids) - 1])
            return original(batch)

        model.forward = last_only
        last = driver.step([(0, PROMPT)])
    finally:
        model.lm_head = seen
        del model.forward
    assert sizes == [1] and last.shape == (1, 384)
    torch.testing.assert_close(last[0], every[-1], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("arithmetic", ARITHMETICS)
def test_a_chunk_that_samples_nothing_returns_no_rows_and_leaves_the_next_one_right(
    monkeypatch: pytest.MonkeyPatch, half_pair: Any, arithmetic: str
) -> None:
    compute_bf16_weights_in(monkeypatch, arithmetic)
    path, reference, half = half_pair("qwen3", "bfloat16")
    driver = ModelDriver(load_model(str(path), data_type=None, device=CPU))
    assert driver.step([(0, PROMPT[:50])], logits=False).shape == (0, 384)
    with torch.inference_mode():
        whole, rounded = (each(torch.tensor([PROMPT])).logits[0, 50:].float() for each in (reference, half))
    assert_rounded_like(driver.step([(0, PROMPT[50:])]), rounded, whole)
