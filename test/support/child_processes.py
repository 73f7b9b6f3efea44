"""Children of a server whose Supervisor is the test: it starts them, kills them, and reads what they report."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec

from lightllm.config import ServerConfig
from lightllm.ipc.child import CHANNEL_VARIABLE, RUNTIME_VARIABLE
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.protocol.control import Command, Status


class ChildProcesses:
    def __init__(self, folder: Path, config: ServerConfig) -> None:
        self.runtime = RuntimeDir.create(folder)
        self.config = config
        self.runtime.write_config(config.to_json())
        self._channels: dict[subprocess.Popen[bytes], socket.socket] = {}

    def start(self, module: str, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """`python -m MODULE`. log: where its standard error goes."""
        ours, theirs = socket.socketpair()
        with theirs:
            environment = {CHANNEL_VARIABLE: str(theirs.fileno()), RUNTIME_VARIABLE: str(self.runtime.path)}
            with open(log or os.devnull, "ab") as output:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    env=os.environ | environment,
                    pass_fds=[theirs.fileno()],
                    stderr=output if log else None,
                )
        self._channels[process] = ours
        return process

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        return list(self._channels)

    def wait_until(self, process: subprocess.Popen[bytes], state: str, seconds: float = 60.0) -> None:
        """Until it reports this state."""
        channel = self._channels[process]
        channel.settimeout(seconds)
        with channel.makefile("rb") as lines:
            for line in lines:
                if msgspec.json.decode(line, type=Status).state == state:
                    return
        raise AssertionError(f"{process.args} ended before it was {state}")

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        self._channels[process].sendall(msgspec.json.encode(Command("stop")) + b"\n")
        return process.wait()

    def close(self) -> None:
        for process, channel in self._channels.items():
            self.kill(process)
            channel.close()
        self.runtime.remove()
