"""Does with hostile constraints what the Http Server and the Model Backend do; one JSON line an attack, before and after.

python -m support.constraint_attacker [--representative] [WORD ...]

Those whose names hold one of the words; without: all.
"""

from __future__ import annotations

import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lightllm.constraints.check import check_constraint
from lightllm.constraints.deep_threads import deep_threads
from lightllm.constraints.matchers import Matchers
from lightllm.errors import InvalidParameter
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer
from support.hostile_constraints import ATTACKS, representative
from support.tokenizers import byte_level

STEPS = 25
NOTHING = np.zeros(0, np.int32)


def main(words: list[str]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = load_tokenizer(str(byte_level(Path(folder) / "model")))
    matchers = Matchers(tokenizer, [max(tokenizer.special_ids)])
    thread = deep_threads(1, "constraints")
    attacks = ATTACKS
    if words[:1] == ["--representative"]:
        attacks, words = representative(), words[1:]
    for name, field, text in attacks:
        if not text or (words and not any(word in name for word in words)):
            continue
        print(json.dumps({"name": name}), flush=True)
        before = memory()
        refused, seconds = timed(lambda field=field, text=text: check(field, text))
        times = [seconds]
        if not refused:
            params = SamplingParams(**{field: text})
            matcher, seconds = timed(
                lambda params=params: thread.submit(matchers.open, params, NOTHING).result()
            )
            times += [seconds, *walk(matchers, matcher)]
        seen = {"name": name, "refused": refused, "seconds": max(times), "megabytes": memory() - before}
        print(json.dumps(seen), flush=True)


def check(field: str, text: str) -> str:
    """What the client is told; "" if the constraint is accepted."""
    try:
        params = SamplingParams(**{field: text}).verify()
        check_constraint(params)
    except InvalidParameter as error:
        assert error.param == field and len(error.message) < 600
        return error.message
    return ""


def walk(matchers: Matchers, matcher: object) -> list[float]:
    """Seconds of each mask and token of a random output."""
    dice, times = random.Random(1), []
    for _ in range(STEPS):
        mask, seconds = timed(lambda: matchers.masks([matcher, matcher][:1])[0])
        times.append(seconds)
        allowed = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
        if matcher.inner.is_stopped() or not len(allowed):
            break
        _, seconds = timed(lambda allowed=allowed: matcher.consume_token(int(dice.choice(allowed))))
        times.append(seconds)
    return times


def timed(call: object) -> tuple[object, float]:
    """Seconds of CPU, of all threads."""
    started = time.process_time()
    return call(), time.process_time() - started


def memory() -> int:
    """Most that this process has held, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


if __name__ == "__main__":
    main(sys.argv[1:])
