"""Sampling defaults of a model: its generation_config.json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import msgspec

from lightllm.errors import InvalidModel, InvalidParameter
from lightllm.model_folder.json_files import read_json_object
from lightllm.sampling_params import PARAMETERS, SamplingParams

_OWN_DEFAULTS = SamplingParams()
GENERATION_FIELDS = [name for name, spec in PARAMETERS.items() if spec.in_generation_config]


def generation_defaults(model_dir: str) -> dict[str, Any]:
    """Sampling defaults of generation_config.json, under the names of `SamplingParams`.

    Holds only what the file states; values that could not be served are left out with a warning.
    """
    path = Path(model_dir) / "generation_config.json"
    config = read_json_object(path)
    defaults: dict[str, Any] = {}
    for name in GENERATION_FIELDS:
        value = config.get(name)
        if value is None:
            continue
        kind, zero = type(getattr(_OWN_DEFAULTS, name)), PARAMETERS[name].zero_means
        if kind is not bool and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise InvalidModel(f"{name} in {path} must be a number, got {value!r}.", "Correct the file.")
        value = kind(value)
        if value == 0 and zero is not None:
            value = zero
        try:
            msgspec.structs.replace(_OWN_DEFAULTS, **{name: value}).verify(native=True)
        except InvalidParameter as error:
            logging.getLogger(__name__).warning("ignoring %s of %s: %s", name, path, error)
            continue
        defaults[name] = value
    return defaults
