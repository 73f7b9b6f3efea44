"""No test: reads a folder that tools/quantize.py wrote with compressed-tensors, in a process that can import it.

    python test/quantization/read_with_libraries.py FOLDER OUT [--model]

writes every module's matrix, as the library's own compressor decompresses it, to the safetensors file OUT; with --model also the
logits that transformers computes for the token ids 5 to 44 ("logits").
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def decompressed(folder: Path) -> dict[str, torch.Tensor]:
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    raw = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(
        {key: value for key, value in raw.items() if key != "quant_method"}
    )
    compressor = BaseCompressor.get_value_from_registry(config.format)
    tensors = {
        name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()
    }
    schemes = {target: scheme for scheme in config.config_groups.values() for target in scheme.targets}
    found = {}
    for name in [name for name in tensors if name.endswith(".weight_scale")]:
        module = name.removesuffix(".weight_scale")
        state = {
            key.removeprefix(f"{module}."): value
            for key, value in tensors.items()
            if key.startswith(f"{module}.")
        }
        state.pop("bias", None)
        scheme = schemes.get(module, schemes["Linear"])
        found[f"{module}.weight"] = compressor.decompress(state, scheme)["weight"].float().contiguous()
    return found


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        return model(torch.arange(5, 45)[None]).logits[0].float()


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    found = decompressed(folder)
    if "--model" in sys.argv:
        found["logits"] = logits(folder)
    save_file(found, sys.argv[2])
