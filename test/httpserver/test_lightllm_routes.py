"""Routes that LightLLM has since 1.2: what the server runs with, the version of its weights, profiles by other names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
import pytest
from httpserver.conftest import Worker
from support.fake_engine import FakeEngine
from support.http_client import http_client

from lightllm import __version__

METHODS = pytest.mark.parametrize("method", ["GET", "POST"])


@pytest.fixture(scope="module")
def guarded(start_worker: Callable[..., Worker]) -> Iterator[httpx.Client]:
    """With keys and profiles; there is no backend that could be asked for one."""
    worker = start_worker(
        worker=1, api_key=["theirs"], admin_api_key=["ours"], max_waiting_requests=77, profile_dir="/traces"
    )  # fmt: skip
    with http_client(worker.url) as client:
        yield client


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


@METHODS
def test_the_server_tells_its_options_but_not_its_keys(
    guarded: httpx.Client, engine: FakeEngine, method: str
) -> None:
    response = guarded.request(method, "/get_server_info", headers=key("theirs"))
    assert response.status_code == 200 and not {"theirs", "ours"} & set(response.text.split('"'))
    info = response.json()
    assert (info["max_waiting_requests"], info["model_dir"]) == (77, "/models/tiny")
    assert info["version"] == __version__
    version = guarded.request(method, "/get_weight_version", headers=key("theirs"))
    assert version.json() == {"weight_version": "default"}
    assert guarded.request(method, "/get_server_info").status_code == 401


@METHODS
@pytest.mark.parametrize("path", ["/profiler_start", "/profiler_stop"])
def test_profiles_have_lightllms_names_too(
    guarded: httpx.Client, engine: FakeEngine, client: httpx.Client, method: str, path: str
) -> None:
    refused = client.request(method, path)
    assert refused.status_code == 403 and "--profile_dir" in refused.json()["message"]
    admin = key("ours")
    assert guarded.request(method, path, headers=admin).status_code == 200
    other_site = guarded.request(method, path, headers=admin | {"sec-fetch-site": "cross-site"})
    assert other_site.status_code == 403
