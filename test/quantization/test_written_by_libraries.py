"""Files that the formats' own libraries wrote (`write_with_libraries.py`) are read as those libraries dequantise them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.few_bits import FORMATS, Mxfp4

from lightllm.quantization.formats import FORMATS as READERS
from lightllm.quantization.linear_spec import LinearSpec, Matrix, Stack
from lightllm.weights.checkpoint import open_checkpoint
from lightllm.weights.reader import ModuleTensors, WeightReader
from lightllm.weights.split import Part

WRITTEN = Path(__file__).parent / "written"
NAMES = sorted(path.stem for path in WRITTEN.glob("*.safetensors"))
CASES: dict[str, Any] = {**FORMATS, "mxfp4": Mxfp4()}


@pytest.fixture(params=NAMES)
def case(request: pytest.FixtureRequest) -> tuple[Any, dict[str, torch.Tensor], torch.Tensor]:
    tensors = load_file(WRITTEN / f"{request.param}.safetensors")
    return CASES[request.param], tensors, tensors.pop("dequantised")


def test_every_library_has_written_some() -> None:
    for word, least in {
        "w4a16": 3,
        "w8a16": 2,
        "int8": 3,
        "float8": 3,
        "awq": 1,
        "gptq": 8,
        "mxfp4": 1,
        "fp8 blocks": 1,
    }.items():
        assert len([name for name in NAMES if name.startswith(word)]) >= least, word


def test_the_description_of_the_format_in_the_tests_agrees(case: Any) -> None:
    own, tensors, expected = case
    torch.testing.assert_close(own.read(tensors, expected.shape[-2:]), expected.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_the_reader_gives_what_the_library_gives(tmp_path: Path, case: Any, rank: int | None) -> None:
    """All of it, or one of two ranks' 24 of 64 inputs and of some outputs, at borders of no group."""
    own, tensors, expected = case
    save_file(
        {f"model.X{suffix}": tensor for suffix, tensor in tensors.items()}, tmp_path / "model.safetensors"
    )
    reader = WeightReader(open_checkpoint(str(tmp_path)))
    module = ModuleTensors(reader, torch.float32, torch.device("cpu")).at("model")
    columns, rows = None, ()
    if rank is not None:
        columns, rows = Part(1, 24 * rank, 24 * rank + 24), (Part(0, 8, 16), Part(0, 16 + rank, 32, 2))
    outputs, inputs = expected.shape[-2:]
    for number, one in enumerate(expected if expected.dim() == 3 else expected[None]):
        stack = Stack(number, len(expected)) if expected.dim() == 3 else None
        spec = LinearSpec((Matrix("X", outputs, rows),), inputs, columns, stack=stack)
        wanted = one.float()
        if columns is not None:
            wanted = torch.cat([part.of(wanted) for part in rows])[:, columns.start : columns.stop]
        found = READERS[own.config["quant_method"]](own.config).dense(module, spec, torch.float32)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    reader.finish()
