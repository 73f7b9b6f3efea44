"""The private folder of one running server: socket files, shared snapshot, metrics, health, resolved config.

<tmp>/lightllm-<uid>/<pid>-<random>/     mode 0700, removed by the Supervisor; stale ones are removed at start

The owner holds a lock on `<folder>/lock` as long as it lives, however it ends; process numbers are only for people
(they are reused, and mean nothing in another container that shares the folder).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightllm.errors import StartupError
from lightllm.ipc.whole_files import write_whole

_LONGEST_PATH = 92
"""The kernel takes 107 bytes for the path of a Unix socket, names inside the folder included."""
_SHORT_BASE = Path("/tmp")
_OWN_NAME = re.compile(r"[0-9]+-[0-9a-f]{8}")


class RuntimeDir:
    """Names of everything inside the folder. Children get the path, the Supervisor creates and removes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.json"
        self.snapshot_file = self.path / "snapshot"
        self.kv_map_file = self.path / "kv-map"
        self.metrics_dir = self.path / "metrics"
        self.connections_file = self.path / "connections"
        self.history_file = self.path / "history"
        self.beats_dir = self.path / "beats"
        self.processes_file = self.path / "processes"
        """What each child is doing, by the Supervisor."""
        self.health_file = self.path / "health"
        self.images_dir = self.path / "images"
        """Files of the image cache; made by `ipc.image_folder`."""
        self.responses_dir = self.path / "responses"
        """What clients have the Http Servers keep."""
        self.ranks_file = self.path / "ranks"
        """Where the Model Backends of one machine find each other; another one for those that are started again."""
        self._epoch_file = self.path / "epoch"
        self._rank_set_file = self.path / "rank-set"
        self._started_set_file = self.path / "started-set"
        self.router_intake = self._socket("router")
        """Http Servers and Detokenizer -> Router."""
        self.detokenizer_intake = self._socket("detokenizer")
        """Router -> Detokenizer."""
        self.round_results = self._socket("results")
        """Model Backend rank 0 -> Router."""
        self.constraint_intake = self._socket("constraints")
        """Http Servers -> Model Backend rank 0."""
        self.cache_control = str(self.path / "cache")
        """Unix socket path of the Cache Manager's rpyc server."""
        self._lock: int | None = None

    @classmethod
    def create(cls, base: str | Path | None = None) -> "RuntimeDir":
        """Makes a new folder owned by this process and removes those whose owner is gone. Raises `StartupError`."""
        chosen = base or os.environ.get("LIGHTLLM_RUNTIME_BASE")
        name = Path(f"lightllm-{os.getuid()}", f"{os.getpid()}-{secrets.token_hex(4)}")
        path = Path(chosen or _temporary_folder()) / name
        if not chosen and len(os.fsencode(path)) > _LONGEST_PATH:
            path = _SHORT_BASE / name  # TMPDIR was not chosen for sockets
        root = path.parent
        remedy = "Set LIGHTLLM_RUNTIME_BASE to another folder."
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise StartupError(f"The runtime folder {path} has too long a name for Unix sockets.", remedy)
        try:
            _make_private(root, remedy)
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

    def write_config(self, data: bytes) -> None:
        """For the children; it may hold API keys. Raises `StartupError`."""
        try:
            with open(os.open(self.config_file, os.O_CREAT | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)
        except OSError as error:
            raise StartupError(
                f"The runtime folder {self.path} cannot be written: {error.strerror}.",
                "Make room there, or set LIGHTLLM_RUNTIME_BASE to another folder.",
            ) from error

    @property
    def created(self) -> float:
        """When the server started; `time.time()`."""
        return (self.path / "lock").stat().st_mtime

    @property
    def epoch(self) -> int:
        """Number of the engine's present life; 0: none has begun."""
        return _read_number(self._epoch_file, 0)

    def begin_epoch(self) -> int:
        """The next life of the engine begins, with a new Router; its number."""
        epoch = self.epoch + 1
        write_whole(self._epoch_file, str(epoch).encode())
        return epoch

    @property
    def rank_set(self) -> int:
        """Number of the present set of ranks: of all Model Backends, those of other nodes too, that are started for each
        other."""
        return _read_number(self._rank_set_file, 0)

    def begin_rank_set(self) -> None:
        """The present set has lost one of its ranks: the next one begins, before any of its ranks is started."""
        write_whole(self._rank_set_file, str(self.rank_set + 1).encode())

    def rank_set_name(self, number: int) -> str:
        """No other set has it, of no server."""
        return f"{self.path.name}/{number}"

    @property
    def started_set(self) -> int:
        """The latest set of which ranks of other nodes were told to meet the others; -1: none."""
        return _read_number(self._started_set_file, -1)

    def note_started_set(self, number: int) -> None:
        write_whole(self._started_set_file, str(number).encode())

    def _socket(self, name: str) -> str:
        return f"ipc://{self.path}/{name}"

    def http_results(self, worker: int) -> str:
        """Router and Detokenizer -> Http Server `worker`."""
        return self._socket(f"http-{worker}")

    def backend_rounds(self, rank: int) -> str:
        """Router -> Model Backend `rank`."""
        return self._socket(f"rounds-{rank}")

    def backend_control(self, rank: int) -> str:
        """Unix socket path of the rpyc server of Model Backend `rank`."""
        return str(self.path / f"control-{rank}")

    def visual_intake(self, rank: int) -> str:
        """Http Servers -> Visual Server `rank`."""
        return self._socket(f"visual-{rank}")

    def visual_rank(self, server: int, rank: int) -> str:
        """Visual Server `server` -> its tensor parallel rank `rank`, from 1 on."""
        return self._socket(f"visual-{server}-{rank}")


def remove_abandoned(base: Path) -> None:
    """Removes what servers of this user that were killed have left in `base`, where this one may make nothing."""
    root = base / f"lightllm-{os.getuid()}"
    with contextlib.suppress(OSError):  # there is none, or it is no folder of ours
        status = root.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            with _locked(root / "lock"):
                remove_stale(root)


def remove_stale(root: Path) -> list[Path]:
    """Removes folders under `root` whose owner no longer exists; returns them. The root's lock must be held.

    Nothing else is touched, whatever put it there: a folder of ours has the name that `create` gives, and our lock in it.
    """
    removed = []
    for path in root.iterdir():
        if _OWN_NAME.fullmatch(path.name) and not path.is_symlink() and path.is_dir() and _abandoned(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _read_number(path: Path, default: int) -> int:
    """default: before there is one."""
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return default


def _temporary_folder() -> str:
    """Where nothing can be written anywhere: one that the error about it can name."""
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:
        return str(_SHORT_BASE)


def _make_private(root: Path, remedy: str) -> None:
    """Makes the folder, or takes one that is ours, and closes it to others. A link is not followed: what it leads to is
    none of our folders. Raises `StartupError`."""
    with contextlib.suppress(FileExistsError):
        root.mkdir(mode=0o700)
    if not stat.S_ISDIR(root.lstat().st_mode):
        raise StartupError(f"The runtime folder {root} is a symbolic link or a file.", remedy)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(folder).st_uid != os.getuid():
            raise StartupError(f"The runtime folder {root} belongs to another user.", remedy)
        os.fchmod(folder, 0o700)
    finally:
        os.close(folder)


def _abandoned(path: Path) -> bool:
    """Whether the folder has a lock, and no living process holds it. One without a lock counts only if it is empty: its
    maker was killed before the lock was there."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return not any(path.iterdir())
    except OSError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One starter at a time looks for stale folders: a new one has no lock for a moment."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
