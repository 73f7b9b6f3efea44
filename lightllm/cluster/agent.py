"""A worker's line to its controllers: it registers, beats, registers again when a controller does not know it, and says goodbye.

register ──ok──> beat every few seconds ──"exist": false──> register
   ^ └──fails, or no connection: again after a pause ┘
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import aiohttp
import msgspec

from lightllm.cluster.signing import HEADER, sign
from lightllm.cluster.upstream import FAILURES
from lightllm.cluster.worker_messages import Beat, Registration

_log = logging.getLogger(__name__)
INTERVAL = 2.0
"""Seconds between two beats."""
_TIMEOUT = aiohttp.ClientTimeout(total=4.0)


class Refused(Exception):
    """The controller answered, and does not want this worker."""


@dataclasses.dataclass(frozen=True)
class Above:
    """Controllers, and what they believe a worker by."""

    urls: Sequence[str]
    secret: bytes = b""
    """That messages are signed with; b"": they are not."""
    key: str | None = None
    """An operator's, for controllers with keys and without a secret."""


class Agent:
    """To be made and closed in the event loop."""

    def __init__(
        self,
        above: Above,
        registration: Callable[[], Awaitable[Registration | None]],
        beat: Callable[[], Awaitable[Beat]],
    ) -> None:
        """registration, beat: what to say, asked each time; None: there is nothing to register yet."""
        self._controllers = [url.rstrip("/") for url in above.urls]
        self._secret = above.secret
        self._keys = {"authorization": f"Bearer {above.key}"} if above.key else {}
        self._registration = registration
        self._beat = beat
        self._wanted = 1
        """Number of the registration that controllers are to have."""
        self._session = aiohttp.ClientSession(timeout=_TIMEOUT)
        self._tasks = [asyncio.ensure_future(self._run(url)) for url in self._controllers]

    async def close(self) -> None:
        """No controller sends anything more; what runs may end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        beat = await self._beat()
        for url in self._controllers:
            with contextlib.suppress(*FAILURES, Refused):
                await self._post(url, "/deregister_worker", beat)
        await self._session.close()

    def register_again(self) -> None:
        """What it said of itself has changed."""
        self._wanted += 1

    async def _run(self, controller: str) -> None:
        known, told, given = False, "", 0
        while True:
            try:
                if not known or given < self._wanted:
                    given, registration = self._wanted, await self._registration()
                    if registration is None:
                        await asyncio.sleep(INTERVAL)
                        continue
                    await self._post(controller, "/register_worker", registration)
                    _log.info("registered with the controller at %s", controller)
                    known = True
                answer = await self._post(controller, "/receive_heart_beat", await self._beat())
                known = bool(isinstance(answer, dict) and answer.get("exist"))
                told = ""
                if not known:
                    continue
            except (*FAILURES, Refused, ValueError) as error:
                reason = str(error) or type(error).__name__
                if reason != told:  # the same reason every two seconds tells nothing more
                    _log.warning("controller %s: %s", controller, reason)
                    told = reason
                known = known and not isinstance(error, Refused)
            await asyncio.sleep(INTERVAL)

    async def _post(self, controller: str, path: str, message: Registration | Beat) -> Any:
        body = msgspec.json.encode(message)
        headers = {"content-type": "application/json", **self._keys}
        if self._secret:
            headers[HEADER] = sign(self._secret, "POST", path, body, time.time())
        async with self._session.post(controller + path, data=body, headers=headers) as response:
            if response.status != 200:
                raise Refused(f"{path} answered {response.status}: {(await response.text())[:300]}")
            return await response.json(content_type=None)
