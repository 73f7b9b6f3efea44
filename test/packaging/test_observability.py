"""Prometheus and Grafana: the files that start them fit together; and Debian's Prometheus, where it is installed, scrapes a real
server and understands every expression of the dashboard."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from support.server import LightLLMServer

FOLDER = Path(__file__).resolve().parents[2] / "tools/observability"


def test_compose_mounts_what_is_there() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for service in services.values():
        assert ":" in service["image"].rpartition("/")[2], "an image without a version"
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        for volume in service["volumes"]:
            source, _, mode = volume.split(":")
            assert (FOLDER / source).exists() and mode == "ro"


def test_grafana_finds_the_dashboard_and_the_data() -> None:
    provisioning = FOLDER / "grafana/provisioning"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in compose
    (provider,) = yaml.safe_load((provisioning / "dashboards/lightllm.yaml").read_text())["providers"]
    mounted = [volume.split(":")[1] for volume in compose["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus")
def test_prometheus_scrapes_a_server_and_evaluates_the_dashboard(tmp_path: Path) -> None:
    with LightLLMServer(
        ["--max_total_token_num", "2048", "--cpu_threads", "1", "--model_name", "demo"]
    ) as server:
        body = {"inputs": "What is AI?", "parameters": {"max_new_tokens": 8, "ignore_eos": True}}
        assert httpx.post(server.url + "/generate", json=body, timeout=60).status_code == 200
        text = httpx.get(server.url + "/metrics", timeout=30).text
        lint = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert "error" not in lint.stderr.lower().replace("no error", ""), lint.stderr
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        config["global"]["scrape_interval"] = "1s"
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [server.url.removeprefix("http://")]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
                   f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            check_prometheus(f"http://127.0.0.1:{port}/api/v1/query")
        finally:
            process.terminate()
            process.wait(30)


def check_prometheus(address: str) -> None:
    end = time.monotonic() + 60
    while not (found := _query(address, 'up{job="lightllm"}')) or found[0]["value"][1] != "1":
        assert time.monotonic() < end, found
        time.sleep(0.2)
    (usage,) = _query(address, "vllm:kv_cache_usage_perc")
    assert usage["metric"]["model_name"] == "demo"
    (generated,) = _query(address, "lightllm_request_generated_tokens_sum")
    assert generated["value"][1] == "8"
    panels = json.loads((FOLDER / "grafana/dashboards/lightllm.json").read_text())["panels"]
    for expression in (target["expr"] for panel in panels for target in panel.get("targets", ())):
        filled = expression.replace("$model_name", "demo").replace("$__rate_interval", "1m")
        assert _query(address, filled) is not None, expression


def _query(address: str, expression: str) -> list[dict[str, Any]]:
    """[] while Prometheus starts; fails for an expression that it does not understand."""
    try:
        response = httpx.get(address, params={"query": expression}, timeout=10)
    except httpx.TransportError:
        return []
    if response.status_code == 503:
        return []
    assert response.json()["status"] == "success", (expression, response.text)
    return response.json()["data"]["result"]  # type: ignore[no-any-return]
