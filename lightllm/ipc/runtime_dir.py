"""The private folder of one running server: socket files, shared snapshot, metrics, resolved config.

<tmp>/lightllm-<uid>/<pid>-<random>/     mode 0700, removed by the Supervisor; stale ones are removed at start
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path


class RuntimeDir:
    """Names of everything inside the folder. Children get the path, the Supervisor creates and removes it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, base: str | Path | None = None) -> "RuntimeDir":
        """Makes a new folder owned by this process and removes those whose owner is gone."""
        root = (
            Path(base or os.environ.get("LIGHTLLM_RUNTIME_BASE") or tempfile.gettempdir())
            / f"lightllm-{os.getuid()}"
        )
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise PermissionError(f"{root} belongs to somebody else")
        os.chmod(root, 0o700)
        remove_stale(root)
        path = root / f"{os.getpid()}-{secrets.token_hex(4)}"
        path.mkdir(mode=0o700)
        return cls(path)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

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
    """Removes folders under `root` whose owning process no longer exists; returns them."""
    removed = []
    for path in root.iterdir():
        pid = path.name.split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
