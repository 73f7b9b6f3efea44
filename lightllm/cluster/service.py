"""The controller's parts, put together: one process and one event loop, so that registry, dispatch and every counter change in one
thread."""

from __future__ import annotations

import asyncio
import gc
import logging

from lightllm.cluster.admission import AllowedWorkers
from lightllm.cluster.agent import Above
from lightllm.cluster.app import create_app, new_routes
from lightllm.cluster.config import ControllerConfig
from lightllm.cluster.dispatch.kv_aware import KvAware
from lightllm.cluster.dispatch.policies import make_policy
from lightllm.cluster.dispatcher import Dispatcher
from lightllm.cluster.entrance import Entrance
from lightllm.cluster.held_responses import HeldResponses
from lightllm.cluster.kv_subscriptions import KvSubscriptions
from lightllm.cluster.metrics import ControllerMetrics
from lightllm.cluster.open_answers import OpenAnswers
from lightllm.cluster.operator_routes import health_routes, model_routes, operator_routes
from lightllm.cluster.placed_routes import PlacedRoutes
from lightllm.cluster.probing import Prober
from lightllm.cluster.proxy import Proxy
from lightllm.cluster.rates import Rates
from lightllm.cluster.registry import Registry
from lightllm.cluster.signing import Verifier
from lightllm.cluster.subordinate import Subordinate
from lightllm.cluster.upstream import Upstream
from lightllm.cluster.waiting import WaitingRoom
from lightllm.cluster.worker_routes import Registrar, fastchat_routes, registration_routes
from lightllm.errors import InvalidOption
from lightllm.http.key_ring import KeyRing
from lightllm.http.server import HttpServer, make_config
from lightllm.httpserver.page_routes import page_routes
from lightllm.ipc.cluster_secret import read_secret_file
from lightllm.server.listener import open_listener, url_of

_log = logging.getLogger(__name__)


class Controller:
    """Raises `StartupError` when it cannot start."""

    def __init__(self, config: ControllerConfig) -> None:
        self.config = config
        self.keys = KeyRing(config.api_key or (), config.admin_api_key or (), config.api_key_file, True)
        path = config.cluster_secret_file
        secret = b"" if path is None else read_secret_file(path)
        above = config.controller_secret_file
        self._secret_above = secret if above is None else read_secret_file(above)
        self._verifier = Verifier(secret) if secret and not config.unsigned_workers else None
        self._allowed = AllowedWorkers(config.allowed_workers, self._verifier is not None)
        self.registry = Registry()
        self.policy = make_policy(config.dispatch_method)
        self.listener = open_listener(config.host, config.port)
        self.routes = new_routes()
        """Those that the web framework answers; complete while the controller runs."""
        self._stopping = False
        self._server: HttpServer | None = None

    async def run(self) -> None:
        """Until `stop`."""
        config, registry = self.config, self.registry
        loop = asyncio.get_running_loop()
        policy = self.policy
        dispatcher = Dispatcher(registry, policy, loop.time)
        pass_keys = not (self.keys.needed or self.keys.admin_needed)
        upstream = Upstream(config.connect_timeout, config.worker_api_key, pass_keys)
        prober = Prober(registry, upstream, config.worker_requests)
        metrics = ControllerMetrics(registry)
        answers = OpenAnswers(registry)
        held = HeldResponses(
            registry, upstream, loop.time, config.response_seconds, config.responses, asks=pass_keys
        )
        waiting = WaitingRoom(dispatcher, config.queue_size, config.queue_size_per_tenant)
        metrics.waiting = waiting.__len__
        entrance = Entrance(self.keys, Rates(loop.time), waiting, metrics, config.queue_timeout)
        max_body = config.max_body_mb << 20
        proxy = Proxy(dispatcher, upstream, metrics, answers, held, entrance, config.retries, max_body)
        placed = PlacedRoutes(dispatcher, upstream, held, answers)
        kv_blocks = policy.blocks if isinstance(policy, KvAware) else lambda url: None
        routes = self.routes
        registrar = Registrar(prober, self._allowed, self._verifier, config.unsigned_workers)
        routes.include_router(registration_routes(dispatcher, registrar))
        routes.include_router(fastchat_routes(dispatcher, prober, registrar))
        routes.include_router(health_routes(registry))
        routes.include_router(model_routes(registry))
        routes.include_router(operator_routes(registry, metrics, kv_blocks))
        if not config.disable_page:
            routes.include_router(page_routes(controller=True))
        app = create_app(config, self.keys, proxy, placed, routes, lambda: self._stopping)
        http = make_config(app, config.timeout_keep_alive)
        self._server = HttpServer(http, self._started, answers.end_all)
        beside = [loop.create_task(prober.run([url.rstrip("/") for url in config.workers or ()]))]
        if isinstance(policy, KvAware):
            beside.append(loop.create_task(KvSubscriptions(registry, policy).run()))
        subordinate = None
        if config.controller_address:
            url = (config.worker_address or url_of(self.listener)).rstrip("/")
            above = Above(config.controller_address, self._secret_above, config.controller_api_key)
            subordinate = Subordinate(above, url, registry, waiting)
        try:
            await self._server.serve(sockets=[self.listener])
        finally:
            if subordinate is not None:
                await subordinate.close()
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await upstream.close()

    def reload(self) -> None:
        """Reads the file of keys anew; if that fails the keys are those of before."""
        try:
            self.keys.reload()
        except InvalidOption as error:
            _log.error("%s", error)

    def stop(self) -> None:
        """In the event loop's thread. Open answers end with an error."""
        self._stopping = True
        if self._server is not None:
            self._server.drain()
            self._server.should_exit = True

    def _started(self) -> None:
        gc.freeze()  # what is there now is not looked at again: a full collection would hold up all streams
        _log.info("controller ready on %s, dispatch %s", url_of(self.listener), self.config.dispatch_method)
