"""JSON files of a model folder, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightllm.errors import InvalidModel


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in `path`, or {} if there is no such file. Raises `InvalidModel` if it is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModel(
            f"{path} cannot be read as JSON ({error}).", "Download the model again, or correct the file."
        ) from error
    if not isinstance(value, dict):
        raise InvalidModel(
            f"{path} must hold a JSON object, but holds a {type(value).__name__}.", "Correct the file."
        )
    return value
