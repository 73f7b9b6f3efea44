"""Files of keys and of the certificate, as they were when they were right for the last time: what an Http Server reads that is
started again while somebody is still writing them.

They lie in memory (memfd), which Http Servers inherit as descriptors; nothing of them is on a disk.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from types import TracebackType

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.http.key_ring import read_key_file
from lightllm.http.tls import ServerTls


class KeptFiles:
    """A context manager: at its end they are gone."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises `InvalidOption` for a file that is wrong."""
        self._config = config
        self._kept: dict[str, int] = {}
        """Descriptor by path."""
        self._read_keys()
        self._read_certificate()

    def __enter__(self) -> KeptFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._kept.values():
            os.close(descriptor)

    @property
    def config(self) -> ServerConfig:
        """With the paths under which a process finds them that inherits the descriptors."""
        config, place = self._config, self._place
        return dataclasses.replace(
            config, api_key_file=place(config.api_key_file), ssl_certfile=place(config.ssl_certfile),
            ssl_keyfile=place(config.ssl_keyfile),
        )  # fmt: skip

    @property
    def descriptors(self) -> tuple[int, ...]:
        return tuple(self._kept.values())

    def read_anew(self) -> None:
        """What is wrong now stays as it was, which is logged."""
        for read in (self._read_keys, self._read_certificate):
            try:
                read()
            except InvalidOption as error:
                logging.getLogger("supervisor").error("not read anew: %s", error)

    def _read_keys(self) -> None:
        if self._config.api_key_file is not None:
            read_key_file(self._config.api_key_file)
            self._keep(self._config.api_key_file)

    def _read_certificate(self) -> None:
        certificate, key = self._config.ssl_certfile, self._config.ssl_keyfile
        if certificate is not None:
            ServerTls(certificate, key)
            self._keep(certificate, *([] if key is None else [key]))

    def _keep(self, *paths: str) -> None:
        """Files that have just been found right. One that is changed at this very moment is found wrong by who reads it next."""
        for path, content in [(path, Path(path).read_bytes()) for path in paths]:
            if path not in self._kept:
                self._kept[path] = os.memfd_create("lightllm")
            os.pwrite(self._kept[path], content, 0)
            os.ftruncate(self._kept[path], len(content))

    def _place(self, path: str | None) -> str | None:
        return path if path is None else f"/proc/self/fd/{self._kept[path]}"
