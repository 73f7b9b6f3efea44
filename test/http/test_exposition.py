"""The text of /metrics: our own names, other servers' for the same, and that docs and dashboards name what is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.metrics import samples

from lightllm.http.exposition import exposition
from lightllm.http.metric_store import MetricStore
from lightllm.ipc.metric_history import HistoryWriter
from lightllm.ipc.runtime_dir import RuntimeDir
from lightllm.ipc.snapshot import Snapshot
from lightllm.protocol import metrics
from lightllm.protocol.metric_aliases import ALIASES
from lightllm.protocol.samples import Sample

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "tools/observability/grafana/dashboards/lightllm.json"


@pytest.fixture
def runtime(tmp_path: Path):  # type: ignore[no-untyped-def]
    folder = RuntimeDir.create(tmp_path)
    yield folder
    folder.remove()


def text_of(runtime: RuntimeDir, snapshot: Snapshot | None = None, model: str = "m") -> str:
    return exposition(runtime, snapshot or Snapshot(), True, model).decode()


def test_what_the_gateway_extension_scrapes(runtime: RuntimeDir) -> None:
    snapshot = Snapshot(running=3, waiting=4, paused=2, slots_total=1000, slots_used=250, pauses=7)
    values = samples(text_of(runtime, snapshot))
    assert values["vllm:num_requests_running"] == 3
    assert values["vllm:num_requests_waiting"] == 6
    assert values["vllm:kv_cache_usage_perc"] == 0.25
    assert values["vllm:cache_config_info{1}{1000}"] == 1
    assert values["vllm:num_preemptions_total"] == 7
    assert samples(text_of(runtime))["vllm:kv_cache_usage_perc"] == 0  # no model yet, so no memory


def test_what_upstreams_dashboards_show(runtime: RuntimeDir) -> None:
    store = MetricStore(runtime.metrics_dir / "http-0", metrics.HTTP_METRICS)
    store.observe(metrics.CACHED_TOKENS, 30)
    fields = dict.fromkeys(Sample.__struct_fields__, 0.0) | {"output_tokens_per_second": 12.5}
    HistoryWriter(runtime.history_file).append(Sample(**fields))
    values = samples(text_of(runtime, Snapshot(prompt_tokens=70, output_tokens=9, running=2)))
    assert values["lightllm_cache_hit_rate"] == 0.3
    assert values["lightllm_gen_throughput"] == 12.5
    assert values["lightllm_num_running_reqs"] == 2
    assert values["lightllm_generation_tokens_total"] == values["vllm:generation_tokens_total"] == 9
    assert values["vllm:prompt_tokens_total"] == 100


def test_an_alias_of_a_histogram_has_all_of_it(runtime: RuntimeDir) -> None:
    store = MetricStore(runtime.metrics_dir / "http-0", metrics.HTTP_METRICS)
    for seconds in (0.002, 0.3, 40.0):
        store.observe(metrics.FIRST_TOKEN_SECONDS, seconds)
    values = samples(text_of(runtime))
    ours, theirs = metrics.FIRST_TOKEN_SECONDS.name, "vllm:time_to_first_token_seconds"
    series = {name.removeprefix(ours): value for name, value in values.items() if name.startswith(ours)}
    assert series["_count"] == 3 and len(series) > 30
    assert {name: values[theirs + name] for name in series} == series


def test_every_series_of_a_model_has_its_name(runtime: RuntimeDir) -> None:
    for family in text_string_to_metric_families(text_of(runtime, model='odd "name"\\')):
        for sample in family.samples:
            if family.name != metrics.START_TIME.name:
                assert sample.labels["model_name"] == 'odd "name"\\', sample
            assert ("engine" in sample.labels) == sample.name.startswith("vllm:")


def test_names_are_unique_and_none_is_another_ones_series() -> None:
    names = [m.name for m in (*metrics.HTTP_METRICS, *(m for m, _ in metrics.SNAPSHOT_METRICS), *ALIASES)]
    assert len(set(names)) == len(names)


def test_names_and_types_are_those_of_the_docs(runtime: RuntimeDir) -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    documented = dict(re.findall(r"^\| `([\w:]+)` \| (counter|gauge|histogram) \|", page, re.MULTILINE))
    exposed = {family.name: family.type for family in text_string_to_metric_families(text_of(runtime))}
    assert exposed == documented


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", ())]


def test_the_dashboard_shows_nothing_that_is_not_there(runtime: RuntimeDir) -> None:
    series = {
        sample.name
        for family in text_string_to_metric_families(text_of(runtime))
        for sample in family.samples
    }
    named = {name for expression in expressions() for name in re.findall(r"([\w:]+)\{", expression)}
    assert named - series == set() and len(named) > 25
    for expression in expressions():
        assert expression.count("(") == expression.count(")"), expression
        assert expression.count('{model_name="$model_name"}') == expression.count("{"), expression


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
