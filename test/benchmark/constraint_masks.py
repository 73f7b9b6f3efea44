"""What constrained decoding costs: at the start of a server, and in every round for each constrained row.

    python test/benchmark/constraint_masks.py [--vocab 32000 151936] [--rows 1 8 64] [--rounds 60] [--model_dir DIR]

Rows are in the middle of a string of a JSON schema, where almost every token may come. A round hears the tokens of the
last one, makes the masks and applies them to float32 logits, on the CPU. Times of rounds: middle (best).
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from support.tokenizers import EOS

from lightllm.constraints.matchers import Matchers
from lightllm.ops.token_bitmask import keep_allowed_
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import Tokenizer, load_tokenizer

SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
)
SAID = '{"name": "Once upon a '


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[32_000, 151_936])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--model_dir", help="a folder with a tokenizer, instead of one made of syllables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for vocab in [0] if options.model_dir else options.vocab:
        with tempfile.TemporaryDirectory() as folder:
            path = options.model_dir or make_tokenizer(Path(folder), vocab)
            start = measure_start(str(path))
        print(start.line())
        for rows in options.rows:
            print(measure_rounds(start, rows, options.rounds))


def make_tokenizer(path: Path, vocab: int) -> Path:
    """Byte-level BPE of `vocab` tokens: bytes, and words of syllables, most of them with a space in front."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    syllables = ["".join(part) for part in itertools.product("bdfgklmnprst", "aeiou")]
    tokens = {EOS: 0} | {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
    for size in itertools.count(1):
        for word in itertools.product(syllables, repeat=size):
            text = "".join(word)
            for form in (f"Ġ{text}", text, f"Ġ{text.capitalize()}", f"Ġ{text}s"):
                if len(tokens) == vocab:
                    tokenizer = Tokenizer(models.BPE(tokens, []))
                    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
                    tokenizer.decoder = decoders.ByteLevel()
                    tokenizer.add_special_tokens([EOS])
                    tokenizer.save(str(path / "tokenizer.json"))
                    return path
                tokens.setdefault(form, len(tokens))
    raise AssertionError


@dataclasses.dataclass
class Start:
    tokenizer: Tokenizer
    matchers: Matchers
    read: float
    """CPU seconds for the tokenizer's files, and for what makes matchers of it."""
    make: float
    held: float
    """Seconds: the longest time for which no other thread could run Python meanwhile."""
    mib: float

    def line(self) -> str:
        return (
            f"{self.tokenizer.vocab_size} tokens: the tokenizer is read in {self.read:.2f} s of CPU, Matchers made in "
            f"{self.make:.2f} s and {self.mib:.0f} MiB; other threads wait {self.held * 1e3:.0f} ms for the GIL at most"
        )


def measure_start(path: str) -> Start:
    from llguidance import LLMatcher  # its import is not measured

    assert LLMatcher
    started = time.process_time()
    tokenizer = load_tokenizer(path, with_chat_template=False)
    read = time.process_time() - started
    before = resident_mib()
    with Ticker() as ticker:
        started = time.thread_time()
        matchers = Matchers(tokenizer, [tokenizer.eos_token_id or 0])
        make = time.thread_time() - started
    return Start(tokenizer, matchers, read, make, ticker.longest, resident_mib() - before)


class Ticker:
    """A thread that wants the GIL every millisecond."""

    def __enter__(self) -> "Ticker":
        self.longest = 0.0
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended = True
        self._thread.join()

    def _run(self) -> None:
        while not self._ended:
            before = time.perf_counter()
            time.sleep(0.001)
            self.longest = max(self.longest, time.perf_counter() - before - 0.001)


def measure_rounds(start: Start, rows: int, rounds: int) -> str:
    matchers, vocab = start.matchers, start.tokenizer.vocab_size
    params = SamplingParams(guided_json=SCHEMA)
    said = np.array(start.tokenizer.encode(SAID, add_special_tokens=False), np.int32)
    started = time.perf_counter()
    first = matchers.open(params, said)
    made = time.perf_counter() - started
    started = time.perf_counter()
    opened = [matchers.open(params, said) for _ in range(rows)]
    opening = time.perf_counter() - started
    assert not first.is_error() and not any(matcher.is_error() for matcher in opened)
    dice = np.random.default_rng(0)
    logits = torch.randn(rows, vocab)
    entries = torch.arange(rows)
    seconds: dict[str, list[float]] = {"hear": [], "mask": [], "apply": []}
    for _ in range(rounds):
        times = [time.perf_counter()]
        masks = matchers.masks(opened)
        times.append(time.perf_counter())
        keep_allowed_(logits, entries, torch.from_numpy(masks))
        times.append(time.perf_counter())
        bits = np.unpackbits(masks.view(np.uint8), axis=1, bitorder="little")[:, :vocab]
        tokens = [int(dice.choice(np.flatnonzero(row))) for row in bits]
        times.append(time.perf_counter())
        for matcher, token in zip(opened, tokens, strict=True):
            matcher.consume_token(token)
        times.append(time.perf_counter())
        for name, start in (("mask", 0), ("apply", 1), ("hear", 3)):
            seconds[name].append((times[start + 1] - times[start]) / rows * 1e6)
        if any(matcher.inner.is_stopped() for matcher in opened):
            opened = [matchers.open(params, said) for _ in range(rows)]
    parts = ", ".join(f"{name} {np.median(all_):.0f} ({min(all_):.0f})" for name, all_ in seconds.items())
    return (
        f"  {rows} rows, us a row: {parts}; the first matcher of the schema takes {made * 1e3:.1f} ms, "
        f"others {opening / rows * 1e3:.2f} ms"
    )


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")) / 1024


if __name__ == "__main__":
    main()
