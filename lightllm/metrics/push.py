"""Pushes all metrics to a gateway of Prometheus (https://github.com/prometheus/pushgateway), for servers that nobody can scrape.

In a thread of its own: a gateway that is slow or gone holds up no sample. A failure is logged once, and the first push
that succeeds after it.
"""

from __future__ import annotations

import base64
import http.client
import logging
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import push_to_gateway
from prometheus_client.registry import CollectorRegistry

from lightllm.config import ServerConfig

log = logging.getLogger("metrics")

_TIMEOUT = 10.0
"""Seconds that a gateway may take to connect, or to answer."""
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Proxies of the environment are for downloads."""


class Pusher:
    def __init__(self, config: ServerConfig, collect: Callable[[], CollectorRegistry]) -> None:
        """collect: all metrics as they are now."""
        assert config.metric_gateway is not None
        self._gateway = config.metric_gateway
        self._job = config.job_name
        self._grouping = grouping(config.grouping_key or ())
        self._interval = config.push_interval
        self._headers = _authorization() if config.enable_monitor_auth else {}
        self._collect = collect
        self._failed = 0
        """Pushes, since the last one that succeeded."""

    def start(self) -> None:
        """Pushes until the process ends."""
        threading.Thread(target=self._run, name="push", daemon=True).start()

    def _run(self) -> None:
        while True:
            self.push()
            time.sleep(self._interval)

    def push(self) -> None:
        """Once. The gateway's metrics of this job and grouping key become those of now (PUT)."""
        try:
            push_to_gateway(
                self._gateway, self._job, self._collect(), self._grouping, _TIMEOUT, self._handler
            )
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._failed:
                log.error("metrics cannot be pushed to %s: %s", self._gateway, error)
            self._failed += 1
            return
        if self._failed:
            log.warning("metrics are pushed again, after %d failures", self._failed)
        self._failed = 0

    def _handler(
        self, url: str, method: str, timeout: float | None, headers: list[tuple[str, str]], data: bytes
    ) -> Callable[[], None]:
        """As prometheus_client wants it."""

        def send() -> None:
            request = urllib.request.Request(
                url, data, {**dict(headers), **self._headers}, method=method
            )  # the option allows no scheme but http and https
            with _opener.open(request, timeout=timeout):
                pass

        return send


def grouping(pairs: Iterable[str]) -> dict[str, str]:
    """["instance=a", "zone=b"] -> {"instance": "a", "zone": "b"}"""
    return dict(pair.split("=", 1) for pair in pairs)


def _authorization(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Basic authentication, with the name and the password that the environment holds, as LightLLM has it."""
    both = f"{environ.get('USERNAME', '')}:{environ.get('PASSWORD', '')}".encode()
    return {"Authorization": "Basic " + base64.b64encode(both).decode()}
