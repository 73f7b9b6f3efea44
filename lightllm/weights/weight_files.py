"""Which weight files of a model folder are read, and which of them a tensor comes from. Loads no torch."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lightllm.errors import InvalidModel

REMEDY = "Is the download complete?"

FORMATS = {
    ".safetensors": ("model.safetensors", "*.safetensors"),
    ".bin": ("pytorch_model.bin", "pytorch_model*.bin"),
}
"""The single file of each format, and what other weight files of it match; the first format that is there is read."""

_SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.\w+")
_OTHER_FORMAT = "consolidated"
"""What the names of files begin with that hold the same weights in Mistral's or Meta's own names."""


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files that are read, all of one format."""

    paths: list[Path]
    index: Mapping[str, str]
    """Tensor -> name of its file, as the index says; empty without one."""
    unread: list[str]
    """Names of weight files that are there and are not read."""


def find_weight_files(model_dir: str) -> WeightFiles:
    """As transformers chooses: safetensors before .bin, the single file before the files of the index; without either all
    shards of the one set that there is. Raises `InvalidModel` that names the file."""
    folder = Path(model_dir)
    present = {suffix: _present(folder, pattern) for suffix, (_, pattern) in FORMATS.items()}
    for suffix, (single, _) in FORMATS.items():
        index = _read_index(folder / f"{single}.index.json")
        if not present[suffix] and not index:
            continue
        paths = _choose(folder, single, index, present[suffix])
        if not paths:
            continue
        unread = [path.name for found in present.values() for path in found if path not in paths]
        names = {path.name for path in paths}
        return WeightFiles(paths, index if set(index.values()) & names else {}, unread)
    raise InvalidModel(f"{model_dir} has no weights (model*.safetensors or pytorch_model*.bin).", REMEDY)


def _present(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        index = {str(name): str(file) for name, file in weight_map.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise InvalidModel(f"{path} is not a valid index: {error!r}.", REMEDY) from error
    if outside := sorted(file for file in set(index.values()) if Path(file).name != file):
        raise InvalidModel(f"{path} names {outside[0]}, which is no file of this folder.", REMEDY)
    return index


def _choose(folder: Path, single: str, index: Mapping[str, str], present: list[Path]) -> list[Path]:
    if folder / single in present:
        return [folder / single]
    if index:
        names = sorted(set(index.values()))
        if absent := [name for name in names if not (folder / name).exists()]:
            raise InvalidModel(
                f"{folder} lacks {', '.join(absent)}, which {single}.index.json names.", REMEDY
            )
        return [folder / name for name in names]
    own = [path for path in present if not path.name.startswith(_OTHER_FORMAT)]
    shards = {path: match for path in own if (match := _SHARD.fullmatch(path.name))}
    sets = sorted({(match[1], match[3]) for match in shards.values()})
    if not sets:
        return own
    if len(sets) > 1:
        several = ", ".join(f"{name}-*-of-{count}" for name, count in sets)
        raise InvalidModel(
            f"{folder} holds several sets of weights ({several}) and no index.", "Leave one set there."
        )
    (name, count), numbers = sets[0], {int(match[2]) for match in shards.values()}
    missing = next((part for part in range(1, int(count) + 1) if part not in numbers), None)
    if missing is not None:
        raise InvalidModel(f"{folder} lacks part {missing} of {int(count)} of {name}-*-of-{count}.", REMEDY)
    return sorted(shards)


def choose_files(
    files: WeightFiles, tensors: Mapping[Path, Iterable[str]], same: Callable[[str, Path, Path], bool]
) -> tuple[dict[str, Path], list[str]]:
    """Tensor -> the file it is read from, and a line for each thing that was overruled.

    tensors: the names that each file holds; same: whether two files hold the same under a name. What the index says
    decides, where the file that it names has the tensor. Raises `InvalidModel` where nothing decides.
    """
    found: dict[str, list[Path]] = {}
    for path, names in tensors.items():
        for name in names:
            found.setdefault(name, []).append(path)
    chosen: dict[str, Path] = {}
    several, elsewhere = [], []
    for name, paths in found.items():
        named = next((path for path in paths if path.name == files.index.get(name)), None)
        if named is None and any(not same(name, paths[0], other) for other in paths[1:]):
            raise InvalidModel(
                f"Tensor {name!r} differs in {' and '.join(path.name for path in paths)}, and no index says which is meant.",
                "Leave one of the files there.",
            )
        if named is not None and len(paths) > 1:
            several.append(name)
        if files.index and named is None:
            elsewhere.append(name)
        chosen[name] = named or paths[0]
    lines = []
    for names, what in (
        (several, "in several files: that of the index is read"),
        (elsewhere, "not in the file that the index names: it is read where it is"),
        (sorted(files.index.keys() - found.keys()), "in the index and in no file"),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            lines.append(f"weights: tensor {names[0]}{more} is {what}.")
    return chosen, lines
