"""The private folder of one running server: socket files, shared snapshot, metrics, resolved config.

<tmp>/lightllm-<uid>/<pid>-<random>/     mode 0700, removed by the Supervisor; stale ones are removed at start

The owner holds a lock on `<folder>/lock` as long as it lives, however it ends; process numbers are only for people
(they are reused, and mean nothing in another container that shares the folder).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightllm.errors import StartupError

_LONGEST_PATH = 92
"""The kernel takes 107 bytes for the path of a Unix socket, names inside the folder included."""


class RuntimeDir:
    """Names of everything inside the folder. Children get the path, the Supervisor creates and removes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    @classmethod
    def create(cls, base: str | Path | None = None) -> "RuntimeDir":
        """Makes a new folder owned by this process and removes those whose owner is gone. Raises `StartupError`."""
        root = (
            Path(base or os.environ.get("LIGHTLLM_RUNTIME_BASE") or tempfile.gettempdir())
            / f"lightllm-{os.getuid()}"
        )
        path = root / f"{os.getpid()}-{secrets.token_hex(4)}"
        remedy = "Set LIGHTLLM_RUNTIME_BASE to another folder."
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise StartupError(f"The runtime folder {path} has too long a name for Unix sockets.", remedy)
        try:
            root.mkdir(mode=0o700, exist_ok=True)
            if root.stat().st_uid != os.getuid():
                raise StartupError(f"The runtime folder {root} belongs to somebody else.", remedy)
            os.chmod(root, 0o700)
            with _locked(root / "lock"):
                remove_stale(root)
                path.mkdir(mode=0o700)
                runtime = cls(path)
                runtime._lock = os.open(path / "lock", os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(runtime._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StartupError(
                f"No runtime folder can be made in {root}: {error.strerror}.", remedy
            ) from error
        return runtime

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def snapshot_file(self) -> Path:
        return self.path / "snapshot"

    @property
    def metrics_dir(self) -> Path:
        return self.path / "metrics"

    def _socket(self, name: str) -> str:
        return f"ipc://{self.path}/{name}"

    @property
    def router_intake(self) -> str:
        """Http Servers and Detokenizer -> Router."""
        return self._socket("router")

    @property
    def detokenizer_intake(self) -> str:
        """Router -> Detokenizer."""
        return self._socket("detokenizer")

    @property
    def round_results(self) -> str:
        """Model Backend rank 0 -> Router."""
        return self._socket("results")

    def http_results(self, worker: int) -> str:
        """Router and Detokenizer -> Http Server `worker`."""
        return self._socket(f"http-{worker}")

    def backend_rounds(self, rank: int) -> str:
        """Router -> Model Backend `rank`."""
        return self._socket(f"rounds-{rank}")

    def backend_control(self, rank: int) -> str:
        """Unix socket path of the rpyc server of Model Backend `rank`."""
        return str(self.path / f"control-{rank}")


def remove_stale(root: Path) -> list[Path]:
    """Removes folders under `root` whose owner no longer exists; returns them. The root's lock must be held."""
    removed = []
    for path in root.iterdir():
        if path.is_dir() and not _owned(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _owned(path: Path) -> bool:
    """Whether a living process holds the folder's lock."""
    try:
        lock = os.open(path / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One starter at a time looks for stale folders: a new one has no lock for a moment."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
