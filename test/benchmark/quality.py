"""What bits cost: `python test/benchmark/quality.py [MODEL]` sets each kind of KV memory beside numbers as they are computed:
perplexity, how often the most likely token is the same, and the divergence of the distributions. Any machine will do."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import perplexity as tool  # noqa: E402

from lightllm.ops.kv_codes import FORMATS, INT8  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    tool.add_arguments(parser)
    options = parser.parse_args()
    text = tool.read_text(options.model, options.text)
    sequences = tool.sequences_of(options.model, text, options.length, options.tokens)
    model = tool.open_model(options.model, options.data_type)
    kinds = {"None": None, **FORMATS, "int8kv, groups of 8": dataclasses.replace(INT8, group=8)}
    config = model.config
    plain = config.head_dim * model.kv_dtype.itemsize
    print(
        f"{'KV memory':22}{'tokens in it':>13}{'perplexity':>12}{'change':>9}{'same token':>12}{'KL, nats':>11}"
    )
    first = 0.0
    for (name, format), found in zip(
        kinds.items(), tool.measure(model, list(kinds.values()), sequences), strict=True
    ):
        first = first or found.perplexity
        size = plain if format is None else format.bytes_per_head(config.head_dim)
        print(
            f"{name:22}{plain / size:12.2f}x{found.perplexity:12.4f}{found.perplexity / first - 1:9.2%}"
            f"{found.agreed / found.tokens:12.2%}{found.divergence / found.tokens:11.2e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
