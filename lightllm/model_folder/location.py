"""From `--model_dir` to a folder: the demo model, a local folder, or a download from the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from lightllm.errors import InvalidModel, StartupError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
_HUB_SECONDS = 10.0
"""How long the hub may take to say which files a model has."""
_NOT_WANTED = ["original/*", "consolidated*", "onnx/*", "*.onnx", "training_args.bin", "optimizer*"]


def resolve_model_dir(name_or_path: str | None, progress: Callable[[str], None]) -> str:
    """The folder of a model: None is the embedded demo model, else a local folder, else a hub id (downloaded).

    `progress` gets a line of text now and then. Raises `InvalidModel`, with what to do about it.
    """
    if name_or_path is None:
        from lightllm import demo

        return _checked(Path(demo.MODEL_DIR))
    path = Path(name_or_path).expanduser()
    if name_or_path and path.is_dir():
        return _checked(path)
    if path.is_file():
        raise InvalidModel(f"{name_or_path} is a file.", "--model_dir must name a folder or a hub id.")
    if not _HUB_ID.fullmatch(name_or_path):
        raise InvalidModel(
            f"The model folder {name_or_path!r} does not exist.",
            "--model_dir must name a folder or a hub id.",
        )
    return _checked(Path(_download(name_or_path, progress)))


def _checked(path: Path) -> str:
    if not (path / "config.json").is_file():
        raise InvalidModel(
            f"{path} has no config.json.", "--model_dir must name a folder in Hugging Face format."
        )
    return str(path)


def _download(hub_id: str, progress: Callable[[str], None]) -> str:
    """Downloads what serving needs; without the hub, takes what an earlier download left."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    progress(f"looking for {hub_id} on the Hugging Face hub")
    try:
        # Not list_repo_files, which tries again and again for half a minute where there is no network.
        files = HfApi().model_info(hub_id, timeout=_HUB_SECONDS).siblings or []
        weights = "*.safetensors" if any(f.rfilename.endswith(".safetensors") for f in files) else "*.bin"
        progress(f"downloading {hub_id}")
        return snapshot_download(hub_id, allow_patterns=[*_FILES, weights], ignore_patterns=_NOT_WANTED)
    except HfHubHTTPError as error:
        raise _refused(hub_id, error) from error
    except HFValidationError as error:
        raise InvalidModel(
            f"{hub_id} is neither a local folder nor a possible hub id.", "Check the spelling."
        ) from error
    except Exception as error:  # the client raises the errors of whichever HTTP library it is built on
        return _cached(hub_id, error, progress)


def _cached(hub_id: str, cause: Exception, progress: Callable[[str], None]) -> str:
    """What an earlier download left."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(hub_id, local_files_only=True)
    except (OSError, ValueError):
        raise InvalidModel(
            f"{hub_id} is not a local folder, and the Hugging Face hub cannot be reached ({_line(cause)}).",
            "Check the network, or give --model_dir a local folder.",
        ) from cause
    progress(f"the hub cannot be reached; using the copy of {hub_id} in the local cache")
    return folder


def _refused(hub_id: str, error: Exception) -> StartupError:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return InvalidModel(
            f"Access to {hub_id} must be granted by its owners.",
            "Ask for it on the model's page, then set HF_TOKEN to your token.",
        )
    if isinstance(error, RepositoryNotFoundError):
        return InvalidModel(
            f"{hub_id} is neither a local folder nor a model on the Hugging Face hub.",
            "Check the spelling; a private model needs HF_TOKEN.",
        )
    return InvalidModel(
        f"The Hugging Face hub refused {hub_id} ({_line(error)}).", "Try again, or give a local folder."
    )


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
