"""Round times: the formula, and constants fitted to measured rounds."""

from __future__ import annotations

import json

import pytest

from lightllm.errors import InvalidOption
from lightllm.simulate import latency


def test_a_small_round_takes_the_floor_and_a_large_one_its_tokens():
    model = latency.find("a100-7b")
    assert model.seconds(1, 0) == pytest.approx(8.4e-3 + 1e-3)
    assert model.seconds(1000, 100_000) == pytest.approx(57e-3 + 33e-3 + 1e-3)
    assert model.capacity == 120_000


@pytest.mark.parametrize("name", sorted(latency.MODELS))
def test_more_work_never_takes_less_time(name):
    model = latency.find(name)
    assert 0 < model.seconds(1, 1) <= model.seconds(32, 32)
    assert model.seconds(512, 512) <= model.seconds(4096, 4096)
    assert model.seconds(1, 1) <= model.seconds(1, 100_000)


def test_fit_finds_the_constants_behind_exact_rounds():
    true = latency.find("a100-7b")
    points = [
        (c, h, true.seconds(c, h)) for c in (1, 64, 148, 512, 2048, 4096) for h in (10, 10_000, 100_000)
    ]
    floor, per_token, per_held, fixed = latency.fit(points)
    for computed, held, seconds in points:
        fitted = max(floor, per_token * computed) + per_held * held + fixed
        assert fitted == pytest.approx(seconds, rel=0.01)
    assert per_token == pytest.approx(57e-6, rel=0.02)
    assert per_held == pytest.approx(0.33e-6, rel=0.02)


def test_fit_has_no_negative_constants_even_for_noise():
    points = [(1, 100, 0.09), (32, 90, 0.08), (64, 5000, 0.07), (512, 10, 0.5)]
    assert all(constant >= 0 for constant in latency.fit(points))


def test_cpu_m1_is_near_the_rounds_that_were_measured():
    for computed, held, seconds in latency.CPU_M1_POINTS:
        assert latency.CPU_M1.seconds(computed, held) == pytest.approx(seconds, rel=0.15)


def test_a_file_may_hold_constants_or_measured_points(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"per_token": 1e-3, "capacity": 5000}))
    assert latency.find(str(path)).per_token == 1e-3
    assert latency.find(str(path)).capacity == 5000
    path.write_text(json.dumps({"points": [[1, 1, 0.1], [512, 512, 6.0]]}))
    fitted = latency.find(str(path))
    assert fitted.name == "mine"
    assert fitted.seconds(512, 512) == pytest.approx(6.0, rel=0.01)
    assert fitted.seconds(1, 1) == pytest.approx(0.1, rel=0.01)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"speed": 3}', '{"points": [[1, 2]]}', '{"points": [[1, 1, 0]]}']
)
def test_a_file_that_is_no_latency_model_is_an_invalid_option(tmp_path, text):
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(InvalidOption, match="wrong.json"):
        latency.find(str(path))


def test_an_unknown_name_is_an_invalid_option():
    with pytest.raises(InvalidOption, match="b200"):
        latency.find("b200")
