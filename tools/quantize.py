"""Writes a copy of a dense model in few bits, which others read too (compressed-tensors):

    python tools/quantize.py MODEL FOLDER --quant_type w4a16 --method gptq --text FILE

--quant_type: w8a8 (int8, a scale for each output; who computes quantises activations), w8a16 and w4a16 (a scale for 128 inputs).
--zeros: w4a16 with a zero for each group, as the server rounds while loading. --method: rounding, or gptq: errors are fed back, so that
products with the text's hidden states change least. One layer is in memory at a time. Without --text this repository's documentation
is the text, for the demo model what it was trained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from quantizing.calibration import walk  # noqa: E402
from quantizing.folder import WrittenFolder  # noqa: E402
from quantizing.modules import Source  # noqa: E402

from lightllm.errors import StartupError  # noqa: E402
from lightllm.quantization.error_feedback import codes_with_feedback  # noqa: E402
from lightllm.quantization.quant_types import QUANT_TYPES, QuantType, quant_type  # noqa: E402
from lightllm.quantization.rounding import Grid, codes_of, grid_of, values_of  # noqa: E402
from lightllm.quantization.write_compressed import config_of, written_tensors  # noqa: E402
from lightllm.tokenizer.loading import load_tokenizer  # noqa: E402

WRITTEN = [name for name, kind in QUANT_TYPES.items() if kind.element != "e4m3"]
_AT_ONCE = 1 << 22
"""Weights that are rounded at a time."""


class Quantiser:
    """Reads a layer's tensors and collects what is written of it."""

    def __init__(self, source: Source, kind: QuantType) -> None:
        self._source, self._kind = source, kind
        self._collected: dict[str, torch.Tensor] = {}
        self._done: set[str] = set()

    def exchange(self, name: str, gram: torch.Tensor | None = None) -> torch.Tensor:
        """Quantises a module by its name in the model. Returns its matrix, float32 [out, in], from now on; gram: see
        `codes_with_feedback`, None: it is rounded plainly."""
        module = self._source.modules[name]
        stored = self._source.checkpoint.read(f"{module.spelling}.weight", module.shape)
        if gram is None:
            codes, grid = self._rounded(stored, module.group)
        else:
            codes, grid = codes_with_feedback(stored.float(), gram, self._kind, module.group, stored.dtype)
        self._source.checkpoint.release_pages(stored)
        for suffix, tensor in written_tensors(codes, grid, self._kind).items():
            self._collected[module.spelling + suffix] = tensor
        self._done.add(name)
        return values_of(codes, self._kind, module.group, grid) if gram is not None else torch.empty(0)

    def _rounded(self, stored: torch.Tensor, group: int) -> tuple[torch.Tensor, Grid]:
        parts = []
        for rows in stored.split(max(1, _AT_ONCE // stored.shape[1])):
            values = rows.float()
            grid = grid_of(values, self._kind, group, stored.dtype)
            parts.append((codes_of(values, self._kind, group, grid), grid))
        zeros = [grid.zeros for _, grid in parts if grid.zeros is not None]
        scales = torch.cat([grid.scales for _, grid in parts])
        return torch.cat([codes for codes, _ in parts]), Grid(scales, torch.cat(zeros) if zeros else None)

    def layer(self, number: int | None) -> dict[str, torch.Tensor]:
        """All that is written of a layer, or of what is in none; modules that were not exchanged are rounded plainly."""
        for name in [] if number is None else self._source.modules_of(number):
            if name not in self._done:
                self.exchange(name)
        found, self._collected = self._collected, {}
        quantised = {one.spelling for one in self._source.modules.values()}
        for spelling in self._source.tensors(number):
            stored = self._source.checkpoint.stored(spelling)
            if spelling.removesuffix(".weight") not in quantised and stored is not None:
                found[spelling] = self._source.checkpoint.read(spelling, stored.shape).clone()
        return found


def quantise_folder(
    model: Path, folder: Path, kind: QuantType, texts: Sequence[Sequence[int]] = ()
) -> Iterator[str]:
    """Writes the folder, and yields a line after each file. texts: token ids that errors are fed back with; none: plain rounding.

    Raises `StartupError` for a model that cannot be quantised, `FileExistsError` for a folder that is not empty.
    """
    source = Source(model, kind)
    if not source.modules:
        raise StartupError(f"{model} has no linear layers that can be quantised.")
    written, quantiser = WrittenFolder(folder, source.config.num_layers + 1), Quantiser(source, kind)
    written.write(quantiser.layer(None))
    if source.uneven:
        yield f"dense, because no group divides their inputs: {', '.join(source.uneven)}"
    layers: Iterator[int] = iter(range(source.config.num_layers))
    if texts:
        layers = walk(
            source.model_class, source.config, source.reader(), source.checkpoint.dtype(), source.modules.__contains__, texts,
            quantiser.exchange,
        )  # fmt: skip
    for number in layers:
        written.write(quantiser.layer(number))
        yield f"layer {number + 1} of {source.config.num_layers}"
    raw = json.loads((model / "config.json").read_text(encoding="utf-8"))
    groups = {one.spelling: one.group for one in source.modules.values()}
    written.finish(model, {**raw, "quantization_config": config_of(kind, groups, source.left_dense())})


def read_text(model: Path, text: Path | None) -> str:
    if text is not None:
        return text.read_text(encoding="utf-8")
    if model.resolve() != ROOT / "lightllm" / "demo":
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
    from demo_model.evaluation import trained_exchanges

    return "".join(question.prompt + question.answer for question in trained_exchanges(1, 2000))


def texts_of(model: Path, text: Path | None, length: int, tokens: int) -> list[list[int]]:
    """Token ids of a text, in sequences."""
    ids = load_tokenizer(str(model)).encode(read_text(model, text))[:tokens]
    return [ids[start : start + length] for start in range(0, len(ids), length)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", type=Path, help="folder of a dense model")
    parser.add_argument("folder", type=Path, help="new folder, for the copy")
    parser.add_argument("--quant_type", choices=WRITTEN, default="w4a16")
    parser.add_argument("--zeros", action="store_true", help="of 4 bits: a zero for each group")
    parser.add_argument("--method", choices=("rounding", "gptq"), default="rounding")
    parser.add_argument("--text", type=Path, help="for gptq")
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--tokens", type=int, default=32768, help="at most so many of the text")
    options = parser.parse_args()
    kind = quant_type(options.quant_type)
    assert kind is not None
    if options.zeros and not kind.zeros:
        parser.error("--zeros is for 4 bits")
    kind = dataclasses.replace(kind, zeros=options.zeros)
    try:
        texts = (
            texts_of(options.model, options.text, options.length, options.tokens)
            if options.method == "gptq"
            else []
        )
        for line in quantise_folder(options.model, options.folder, kind, texts):
            print(line, flush=True)
    except (StartupError, OSError) as error:
        sys.exit(f"quantize.py: {error}")


if __name__ == "__main__":
    main()
