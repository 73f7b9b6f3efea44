"""How the training of the demo model begins, and how it goes on after a break."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tokenizers import Tokenizer  # noqa: E402

from demo_model import training  # noqa: E402
from demo_model.copying_heads import begin_with_copying_heads  # noqa: E402
from demo_model.train import model_config  # noqa: E402
from demo_model.training import TrainingPlan, train  # noqa: E402
from lightllm.demo import MODEL_DIR  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(Path(MODEL_DIR) / "tokenizer.json"))


@pytest.fixture
def config(tokenizer: Tokenizer) -> LlamaConfig:
    return model_config(tokenizer)


def test_before_training_two_heads_look_where_the_same_token_stood(config: LlamaConfig) -> None:
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    begin_with_copying_heads(model)
    period = 12
    once = torch.randperm(config.vocab_size, generator=torch.Generator().manual_seed(1))[:period]
    with torch.inference_mode():
        first, second, *_ = model(once.repeat(2)[None], output_attentions=True).attentions
    before = torch.stack([first[0, 0, place, place - 1] for place in range(1, 2 * period)])
    behind_the_same = torch.stack(
        [second[0, 0, place, place - period + 1] for place in range(period, 2 * period)]
    )
    assert before.min() > 0.9
    assert behind_the_same.mean() > 0.5


def test_a_run_that_was_ended_goes_on_to_the_same_weights(
    config: LlamaConfig, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "STEPS_BETWEEN_CHECKPOINTS", 2)
    config.num_hidden_layers = 2
    plan = TrainingPlan(steps=3, last_steps=2, rows=1, row_tokens=270, warmup_steps=2)
    whole = train(config, tokenizer, plan)
    checkpoint = tmp_path / "run.pt"
    train(config, tokenizer, plan, checkpoint)
    assert torch.load(checkpoint, weights_only=True)["step"] == 4
    resumed = train(config, tokenizer, plan, checkpoint)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], tensor, msg=name)
