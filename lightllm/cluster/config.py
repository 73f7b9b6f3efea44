"""The controller's options."""

from __future__ import annotations

import dataclasses

from lightllm.cluster.dispatch.policies import POLICIES
from lightllm.option_spec import at_least
from lightllm.option_spec import option as _option

_SERVER, _WORKERS, _REQUESTS = "Server", "Workers", "Requests"
OTHER_NAMES = {"policy": "dispatch_method", "worker_urls": "workers", "max_payload_size": "max_body_mb"}
"""Options of other routers, and ours for the same."""


@dataclasses.dataclass(frozen=True)
class ControllerConfig:
    host: str = _option("127.0.0.1", "HTTP bind address.", _SERVER)
    port: int = _option(21001, "HTTP port; 0 takes a free one.", _SERVER, type=int,
                        check=lambda v: 0 <= v < 65536, expects="a port number, 0 to 65535")  # fmt: skip
    api_key: list[str] | None = _option(
        None, "Keys that clients may present; every route but health needs one.", _SERVER, nargs="+", metavar="KEY")  # fmt: skip
    admin_api_key: list[str] | None = _option(
        None, "Keys without which no client may see, drain or remove workers; they open all other routes too.", _SERVER, nargs="+",
        metavar="KEY")  # fmt: skip
    api_key_file: str | None = _option(
        None, "File with such keys, one a line: KEY or sha256:DIGEST, then `admin` for a key of operators, or what the key may do: tenant=NAME "
        "requests_per_minute=N tokens_per_minute=N priority=N. SIGHUP has it read anew.", _SERVER, metavar="FILE")  # fmt: skip
    allowed_hosts: list[str] | None = _option(
        None, "Names that requests may call the controller by while it listens on a loopback address without --api_key.", _SERVER,
        nargs="+", metavar="NAME")  # fmt: skip
    allowed_origins: list[str] | None = _option(
        None, "CORS: origins that browsers may call from.", _SERVER, nargs="+", metavar="ORIGIN"
    )
    disable_page: bool = _option(False, "No page at / (chat, and a table of the workers).", _SERVER)
    max_body_mb: int = _option(64, "Largest request body, MiB.", _SERVER, **at_least(1))
    timeout_keep_alive: int = _option(
        75, "Seconds that an idle connection of a client is kept.", _SERVER, **at_least(1)
    )

    controller_address: list[str] | None = _option(
        None, "Controllers that this one is a worker of, with all models of its workers.", _SERVER, nargs="+", metavar="URL")  # fmt: skip
    controller_secret_file: str | None = _option(
        None, "File with the secret that those have; default: --cluster_secret_file.", _SERVER, metavar="FILE")  # fmt: skip
    controller_api_key: str | None = _option(
        None, "Key of an operator of those that have keys and no secret.", _SERVER, metavar="KEY")  # fmt: skip
    worker_address: str | None = _option(
        None, "URL that they reach this controller by; default: where it listens.", _SERVER, metavar="URL")  # fmt: skip

    dispatch_method: str = _option(
        "prefix_aware", "Which worker takes a request.", _WORKERS, choices=tuple(POLICIES)
    )
    workers: list[str] | None = _option(
        None, "URLs of servers that do not register themselves; they are asked for their models, and probed.", _WORKERS, nargs="+",
        metavar="URL")  # fmt: skip
    worker_requests: int = _option(
        0, "Requests that each of them has at a time; 0: any number. Those that register say so themselves.", _WORKERS, **at_least(0))  # fmt: skip
    cluster_secret_file: str | None = _option(
        None, "File with the secret that workers sign their registrations and beats with.", _WORKERS, metavar="FILE")  # fmt: skip
    unsigned_workers: bool = _option(
        False, "Takes registrations without a signature or a key although there are a secret or keys: FastChat's own workers have none.",
        _WORKERS)  # fmt: skip
    allowed_workers: list[str] | None = _option(
        None, "Hosts that workers' URLs may have: addresses, networks (10.0.0.0/8), names, *.names. Default: loopback addresses, and "
        "with a secret the address that the registration comes from.", _WORKERS, nargs="+", metavar="HOST")  # fmt: skip
    worker_api_key: str | None = _option(
        None, "Key that the controller presents to workers; without it, and without keys of its own, it passes the client's on.", _WORKERS,
        metavar="KEY")  # fmt: skip

    retries: int = _option(
        2,
        "Further workers that a request is sent to when one fails before the answer has begun.",
        _REQUESTS,
        **at_least(0),
    )
    connect_timeout: float = _option(
        2.0, "Seconds until a worker must have taken a connection.", _REQUESTS, type=float, check=lambda v: v > 0,
        expects="more than 0")  # fmt: skip
    queue_size: int = _option(
        4096, "Requests that wait in the controller while all workers of their model are full; further ones get 503.", _REQUESTS,
        **at_least(0))  # fmt: skip
    queue_size_per_tenant: int = _option(
        1024, "Such requests of one tenant; further ones get 429.", _REQUESTS, **at_least(0)
    )
    queue_timeout: float = _option(
        60.0, "Seconds that a request waits in the controller, then it gets 503.", _REQUESTS, type=float, check=lambda v: v > 0,
        expects="more than 0")  # fmt: skip
    responses: int = _option(
        65536, "Responses of /v1/responses whose workers are remembered.", _REQUESTS, **at_least(1)
    )
    response_seconds: float = _option(
        86400.0, "Seconds after its last use that such a response's worker is remembered.", _REQUESTS, type=float, check=lambda v: v > 0,
        expects="more than 0")  # fmt: skip
