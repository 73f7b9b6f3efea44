"""What bits cost: `python test/benchmark/quality.py [MODEL]` sets each kind of KV memory, and each `--quant_type` of the weights, beside
the model as it is: perplexity, how often the most likely token is the same, and the divergence of the distributions. Any machine
will do. --beside FOLDER...: other copies of the model, such as tools/quantize.py writes."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import perplexity as tool  # noqa: E402

from lightllm.models.base import TpPartBaseModel  # noqa: E402
from lightllm.ops.kv_codes import FORMATS, INT8  # noqa: E402
from lightllm.quantization import while_loading  # noqa: E402
from lightllm.quantization.quant_plan import read_plan  # noqa: E402
from lightllm.quantization.quant_types import QUANT_TYPES  # noqa: E402

Sequences = Sequence[Sequence[int]]


def kinds_of_memory(
    model: TpPartBaseModel, sequences: Sequences, reference: Sequence[torch.Tensor]
) -> Iterator[tuple[str, float, tool.Quality]]:
    """Each with how many more tokens are in it."""
    kinds = {"None": None, **FORMATS, "int8kv, groups of 8": dataclasses.replace(INT8, group=8)}
    plain = model.config.head_dim * model.kv_dtype.itemsize
    for name, format in kinds.items():
        size = plain if format is None else format.bytes_per_head(model.config.head_dim)
        yield name, plain / size, tool.compare(model, format, sequences, reference)


def kinds_of_weights(
    folders: Sequence[Path], data_type: str | None, sequences: Sequences, reference: Sequence[torch.Tensor]
) -> Iterator[tuple[str, int, tool.Quality]]:
    """Each with its bytes. folders: the model, and other copies of it."""
    for name in ("none", *QUANT_TYPES):
        model = tool.open_model(folders[0], data_type, read_plan(name, None))
        yield name, model.weight_bytes, tool.compare(model, None, sequences, reference)
    with mock.patch.object(while_loading, "_multiplies_bytes", lambda device: True):
        model = tool.open_model(folders[0], data_type, read_plan("w8a8", None))
    name = "w8a8, as on a GPU"
    yield name, model.weight_bytes, tool.compare(model, None, sequences, reference)
    for folder in folders[1:]:
        model = tool.open_model(folder, data_type)
        yield folder.name, model.weight_bytes, tool.compare(model, None, sequences, reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    tool.add_arguments(parser)
    parser.add_argument("--only", choices=("kv", "weights"))
    parser.add_argument("--beside", type=Path, nargs="+", default=[], metavar="FOLDER")
    options = parser.parse_args()
    text = tool.read_text(options.model, options.text)
    sequences = tool.sequences_of(options.model, text, options.length, options.tokens)
    model = tool.open_model(options.model, options.data_type)
    reference = list(tool.logits_of(model, None, sequences))
    columns = f"{'perplexity':>12}{'change':>9}{'same token':>12}{'KL, nats':>11}"
    if options.only != "weights":
        print(f"{'KV memory':22}{'tokens in it':>13}{columns}")
        first = None
        for name, times, found in kinds_of_memory(model, sequences, reference):
            first = first or found.perplexity
            print(f"{name:22}{times:12.2f}x{figures(found, first)}", flush=True)
    if options.only != "kv":
        print(f"{'weights':22}{'MiB':>13}{columns}")
        first = None
        folders = [options.model, *options.beside]
        for name, nbytes, found in kinds_of_weights(folders, options.data_type, sequences, reference):
            first = first or found.perplexity
            print(f"{name:22}{nbytes / 2**20:13.2f}{figures(found, first)}", flush=True)


def figures(found: tool.Quality, first: float) -> str:
    return (
        f"{found.perplexity:12.4f}{found.perplexity / first - 1:9.2%}{found.agreed / found.tokens:12.2%}"
        f"{found.divergence / found.tokens:11.2e}"
    )


if __name__ == "__main__":
    main()
