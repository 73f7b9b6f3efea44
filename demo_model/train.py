"""Trains the demo model that ships in `lightllm/demo/`: python -m demo_model.train [--output FOLDER].

Needs no data and no GPU: the text is generated, the seed is fixed, a CPU core takes minutes. The same machine type, thread
count and library versions give the same files.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from safetensors.torch import save
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from demo_model.document import BOS, EOS, PAD, TURN_END
from demo_model.evaluation import (
    Question,
    Score,
    evaluate,
    held_out_questions,
    repeating_questions,
    thinking_questions,
    tool_questions,
    trained_questions,
)
from demo_model.report import write_report
from demo_model.tokenizer_files import CONTEXT_LENGTH, VOCAB_SIZE, train_tokenizer, write_tokenizer
from demo_model.training import TrainingPlan, train

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = REPOSITORY / "lightllm" / "demo"
DOCS_PAGE = REPOSITORY / "docs" / "demo_model.md"
ROPE_THETA = 10000.0
CONFIG_KEYS = (
    "attention_bias bos_token_id eos_token_id head_dim hidden_act hidden_size initializer_range intermediate_size "
    "max_position_embeddings mlp_bias num_attention_heads num_hidden_layers num_key_value_heads pad_token_id rms_norm_eps "
    "tie_word_embeddings use_cache vocab_size"
).split()


def model_config(tokenizer: Tokenizer) -> LlamaConfig:
    """The shape of the demo model: a Llama with grouped-query attention and tied embeddings."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=CONTEXT_LENGTH,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id(BOS),
        eos_token_id=tokenizer.token_to_id(EOS),
        pad_token_id=tokenizer.token_to_id(PAD),
        initializer_range=0.04,
    )


def write_model(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """config.json, generation_config.json and the weights in bfloat16."""
    config = {key: getattr(model.config, key) for key in CONFIG_KEYS}
    config |= {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    config |= {"rope_theta": ROPE_THETA, "rope_scaling": None}
    generation = {
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": [tokenizer.token_to_id(EOS), tokenizer.token_to_id(TURN_END)],
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    weights = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    weights.pop("lm_head.weight")
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def print_scores(scores: dict[str, Score], show_misses: bool) -> None:
    """The evaluation table."""
    for category, score in scores.items():
        print(f"{category:20} {score.right:4} of {score.asked:4}   {100 * score.right / score.asked:5.1f} %")
        for prompt, wanted, got in score.misses[: 6 if show_misses else 0]:
            print(f"    {prompt!r}\n      wanted {wanted!r}\n      got    {got!r}")


def parse_options() -> argparse.Namespace:
    """The command line; its defaults made the files that ship."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder for the files")
    parser.add_argument("--seed", type=int, default=TrainingPlan.seed)
    parser.add_argument("--steps", type=int, default=TrainingPlan.steps)
    parser.add_argument("--learning_rate", type=float, default=TrainingPlan.learning_rate)
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; part of what makes a run repeatable"
    )
    parser.add_argument(
        "--autocast",
        action="store_true",
        help="multiply in bfloat16: about half the time on a processor that can (AVX512-BF16, AMX)",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        help="file to save the run to now and then, and to go on from after a break",
    )
    parser.add_argument("--questions", type=int, default=60, help="evaluation questions of a category")
    parser.add_argument("--evaluate_only", action="store_true", help="ask the model that lies in --output")
    parser.add_argument("--show_misses", action="store_true", help="print wrong answers below the table")
    parser.add_argument(
        "--docs", type=Path, help="page for the figures (default: ours when --output is the default)"
    )
    return parser.parse_args()


def make_model(options: argparse.Namespace) -> list[str]:
    """Trains tokenizer and model, writes the files, and returns what the page says about the run."""
    started = time.monotonic()
    options.output.mkdir(parents=True, exist_ok=True)
    plan = TrainingPlan(
        seed=options.seed, steps=options.steps, learning_rate=options.learning_rate, autocast=options.autocast
    )
    tokenizer = train_tokenizer(seed=options.seed + 1, documents=20_000)
    write_tokenizer(tokenizer, options.output)
    model = train(model_config(tokenizer), tokenizer, plan, options.checkpoint)
    write_model(model, tokenizer, options.output)
    size = (options.output / "model.safetensors").stat().st_size
    return [
        "Command line: `python -m demo_model.train "
        f"--seed {plan.seed} --steps {plan.steps} --learning_rate {plan.learning_rate} --threads {options.threads}"
        f"{' --autocast' if plan.autocast else ''}`",
        "",
        f"- {model.num_parameters():,} parameters, vocabulary of {tokenizer.get_vocab_size()} tokens, {size / 1e6:.1f} MB",
        f"- {plan.steps} + {plan.last_steps} steps of {plan.rows * plan.row_tokens} tokens in {(time.monotonic() - started) / 60:.0f} minutes "
        f"on {options.threads} CPU thread(s) (wall time), torch {torch.__version__}",
    ]


def all_questions(seed: int, per_category: int) -> list[Question]:
    """What the table on the page is made of."""
    return [
        *held_out_questions(seed, per_category),
        *thinking_questions(seed, per_category),
        *repeating_questions(seed, per_category),
        *tool_questions(seed, per_category),
        *trained_questions(),
    ]


def main() -> None:
    options = parse_options()
    torch.set_num_threads(options.threads)
    facts = [] if options.evaluate_only else make_model(options)
    print("\n".join(facts))
    tokenizer = Tokenizer.from_file(str(options.output / "tokenizer.json"))
    model = LlamaForCausalLM.from_pretrained(options.output, dtype=torch.bfloat16).float()
    scores = evaluate(model, tokenizer, all_questions(options.seed + 2, options.questions))
    print_scores(scores, options.show_misses)
    page = options.docs or (DOCS_PAGE if options.output.resolve() == SHIPPED else None)
    if page and facts:
        write_report(page, facts, scores)


if __name__ == "__main__":
    main()
