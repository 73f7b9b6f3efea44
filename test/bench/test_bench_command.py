"""The benchmark client: figures from known times, and both APIs against a server with known timing."""

import asyncio
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from support.streaming_server import BETWEEN_TOKENS, FIRST_TOKEN, FakeServer

from lightllm.bench import command, dataset, figures, load
from lightllm.bench.apis import NativeApi, Outcome
from lightllm.bench.dataset import Request
from lightllm.bench.http_stream import Target

# -- figures


def outcome(start: float, times: list[float], tokens: int, prompt: int = 10, **more: object) -> Outcome:
    return Outcome(
        wanted_tokens=tokens, prompt_tokens=prompt, output_tokens=tokens, start=start, times=times, **more
    )  # type: ignore[arg-type]


def test_figures_follow_from_the_times() -> None:
    run = load.Run(
        [outcome(0.0, [0.1, 0.2, 0.4], 3), outcome(1.0, [1.3, 1.5], 2, prompt=30)],
        seconds=2.0,
        client_cpu=0.1,
    )
    result = figures.summarize(run)
    assert (result["completed"], result["failed"], result["wrong_length"]) == (2, 0, 0)
    assert result["requests_per_s"] == 1.0
    assert (result["input_tokens_per_s"], result["output_tokens_per_s"]) == (20.0, 2.5)
    assert result["ttft_ms"]["mean"] == pytest.approx(200) and result["ttft_ms"]["max"] == pytest.approx(300)
    assert result["e2e_ms"]["p50"] == pytest.approx(450)
    assert result["tpot_ms"]["mean"] == pytest.approx((150 + 200) / 2)
    assert result["itl_ms"]["mean"] == pytest.approx((100 + 200 + 200) / 3)
    assert result["client_cpu_share"] == pytest.approx(0.05)


def test_tpot_counts_tokens_not_events_and_needs_two() -> None:
    assert figures.tpot(outcome(0.0, [1.0, 2.0], 5)) == pytest.approx(0.25)
    assert figures.tpot(outcome(0.0, [1.0], 1)) is None


def test_failed_requests_count_by_kind_and_in_no_rate() -> None:
    bad = [outcome(0.0, [0.1], 4, failure="HTTP 503", detail=f"HTTP 503: {i}") for i in range(2)]
    result = figures.summarize(load.Run([outcome(0.0, [0.5], 1), *bad], seconds=1.0, client_cpu=0.0))
    assert result["failures"] == {"HTTP 503": 2} and result["failure_samples"] == {"HTTP 503": "HTTP 503: 0"}
    assert result["output_tokens"] == 1 and result["ttft_ms"]["max"] == pytest.approx(500)
    assert "2 x HTTP 503, e.g. HTTP 503: 0" in figures.report(result)


def test_goodput_counts_requests_that_keep_every_limit() -> None:
    run = load.Run(
        [outcome(0, [0.1, 0.2], 2), outcome(0, [0.1, 0.9], 2), outcome(0, [0.7, 0.8], 2)], 2.0, 0.0
    )
    result = figures.summarize(run, figures.Goal(ttft=500.0, tpot=200.0))
    assert result["goodput_requests_per_s"] == 0.5
    assert "goodput_requests_per_s" not in figures.summarize(run, figures.Goal())


def test_a_busy_client_is_reported() -> None:
    run = load.Run([outcome(0, [0.1], 1)], seconds=1.0, client_cpu=0.97)
    assert "The client used 97% of a core" in figures.report(figures.summarize(run))


def test_a_run_without_a_single_success_still_reports() -> None:
    run = load.Run([outcome(0, [], 1, failure="cut off", detail="cut off")], seconds=1.0, client_cpu=0.0)
    assert figures.summarize(run)["requests_per_s"] == 0.0


# -- data sets and arrivals


def test_synthetic_lengths_have_the_means_of_sharegpt() -> None:
    requests = dataset.synthetic(4000, vocab_size=1000, seed=1)
    assert np.mean([r.prompt_tokens for r in requests]) == pytest.approx(217, rel=0.02)
    assert np.mean([r.output_tokens for r in requests]) == pytest.approx(200, rel=0.02)
    assert np.std([r.prompt_tokens for r in requests]) > 100
    assert all(
        4 <= r.prompt_tokens == len(r.prompt) and r.prompt_tokens + r.output_tokens <= 2048 for r in requests
    )
    assert {type(i) for i in requests[0].prompt} == {int}


def test_synthetic_prompts_depend_on_the_seed_alone_and_stay_in_the_vocabulary() -> None:
    assert (
        dataset.synthetic(5, 40, seed=3)
        == dataset.synthetic(5, 40, seed=3)
        != dataset.synthetic(5, 40, seed=4)
    )
    assert {i for r in dataset.synthetic(50, 40, seed=3) for i in r.prompt} == set(range(16, 40))


def test_given_lengths_replace_the_drawn_ones() -> None:
    requests = dataset.synthetic(3, 1000, seed=0, input_len=7, output_len=9)
    assert [(r.prompt_tokens, r.output_tokens) for r in requests] == [(7, 9)] * 3


def write_sharegpt(path: Path, turns: list[list[str]]) -> Path:
    entries = [
        {"id": str(i), "conversations": [{"from": "human", "value": t} for t in pair]}
        for i, pair in enumerate(turns)
    ]
    path.write_text(json.dumps(entries))
    return path


def words(text: str) -> list[int]:
    return list(range(len(text.split())))


def test_sharegpt_takes_two_turns_and_drops_what_does_not_fit(tmp_path: Path) -> None:
    good = ["a b c d e", "f g h i"]
    bad = [["only one turn of words"], ["a b", "too short a prompt"], ["a b c d", "no"], ["x " * 1025, "a b c d"],
           ["x " * 1000, "y " * 1100]]  # fmt: skip
    path = write_sharegpt(tmp_path / "s.json", [*bad, good])
    assert dataset.sharegpt(path, 10, words, seed=0) == [dataset.Request("a b c d e", 5, 4)]


def test_sharegpt_leaves_out_entries_without_text(tmp_path: Path) -> None:
    path = write_sharegpt(tmp_path / "s.json", [["a b c d e", "f g h i"]])
    broken = [None, {}, {"conversations": None}, {"conversations": [{"from": "human"}, {"value": None}]},
              {"conversations": ["a b c d", "e f g h"]}]  # fmt: skip
    path.write_text(json.dumps([*broken, *json.loads(path.read_text())]))
    assert len(dataset.sharegpt(path, 10, words, seed=0)) == 1


def test_sharegpt_without_a_usable_conversation_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no conversation"):
        dataset.sharegpt(write_sharegpt(tmp_path / "s.json", [["a"]]), 1, words, seed=0)
    (tmp_path / "o.json").write_text("{}")
    with pytest.raises(ValueError, match="not a list"):
        dataset.sharegpt(tmp_path / "o.json", 1, words, seed=0)


def test_arrivals_are_poisson_with_the_given_rate() -> None:
    times = load.arrivals(5000, 20.0, seed=0)
    gaps = np.diff(times)
    assert times[0] == 0.0 and gaps.mean() == pytest.approx(1 / 20, rel=0.05)
    assert gaps.std() == pytest.approx(1 / 20, rel=0.05)  # of an exponential: equal to its mean
    assert not load.arrivals(10, math.inf, seed=0).any()


def test_addresses_are_checked() -> None:
    assert Target.from_url("http://h:81/api/") == Target("h", 81, "/api")
    assert Target.from_url("https://h").port == 443
    with pytest.raises(ValueError, match="not an http"):
        Target.from_url("localhost:8000")


# -- events


def test_a_closing_event_that_repeats_the_last_token_is_no_token() -> None:
    outcome = Outcome(wanted_tokens=1)
    for finished in (False, True):
        event = {
            "token": {"count_output_tokens": 1, "prompt_tokens": 3},
            "finish_reason": "stop" if finished else None,
        }
        NativeApi(ignore_eos=True).read(json.dumps(event).encode(), 1.0 + finished, outcome)
    assert (outcome.times, outcome.output_tokens, outcome.finish_reason) == ([1.0], 1, "stop")


# -- against a server


def benchmark(server: FakeServer, *arguments: str) -> int:
    return command.main(
        [
            "--port",
            str(server.port),
            "--no-progress",
            "--num-prompts",
            "6",
            "--input-len",
            "5",
            "--output-len",
            "4",
            *arguments,
        ]
    )


@pytest.mark.parametrize("api", ["native", "openai"])
@pytest.mark.parametrize("framing", ["", "crlf", "close-delimited"])
def test_both_apis_measure_what_the_server_does(
    api: str, framing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeServer(framing).running() as server:
        assert benchmark(server, "--api", api, "--output-json", str(tmp_path / "out/r.json")) == 0
    result = json.loads((tmp_path / "out/r.json").read_text())
    numbers = result["figures"]
    assert (numbers["completed"], numbers["failed"], numbers["wrong_length"]) == (6, 0, 0)
    assert (numbers["input_tokens"], numbers["output_tokens"]) == (30, 24)
    assert numbers["ttft_ms"]["p50"] >= FIRST_TOKEN * 1e3
    assert numbers["tpot_ms"]["p50"] >= BETWEEN_TOKENS * 1e3 * 0.9
    assert numbers["e2e_ms"]["p50"] >= (FIRST_TOKEN + 3 * BETWEEN_TOKENS) * 1e3
    assert [len(r["times"]) for r in result["requests"]] == [4] * 6
    assert re.search(r"Completed requests +6\n", capsys.readouterr().out)


def test_requests_have_the_shape_of_each_api() -> None:
    with FakeServer().running() as server:
        benchmark(server, "--warmups", "0")
        assert server.paths == ["/generate_stream"] * 6
        assert server.bodies[0]["parameters"] == {"max_new_tokens": 4, "do_sample": False, "ignore_eos": True}
        benchmark(server, "--api", "openai", "--no-ignore-eos", "--warmups", "0")
        assert server.paths[6:8] == ["/v1/models", "/v1/completions"]
        body = server.bodies[-1]
        assert body["model"] == "fake" and body["stream"] is True and "ignore_eos" not in body


def test_max_concurrency_bounds_what_is_in_flight() -> None:
    with FakeServer().running() as server:
        benchmark(server, "--max-concurrency", "2", "--warmups", "0")
        assert server.most_at_once == 2
        benchmark(server, "--warmups", "0")
        assert server.most_at_once == 6


@pytest.mark.parametrize("api", ["native", "openai"])
@pytest.mark.parametrize(
    ("misbehave", "kind"), [("busy", "HTTP 503"), ("cut", "cut off"), ("error", "error event")]
)
def test_failures_are_named(api: str, misbehave: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer(misbehave).running() as server:
        assert benchmark(server, "--api", api, "--warmups", "0") == 1
    assert f"6 x {kind}" in capsys.readouterr().out


def test_a_refusal_says_when_to_come_again() -> None:
    with FakeServer("busy").running() as server:
        target = Target("127.0.0.1", server.port)
        found = asyncio.run(load.send(target, NativeApi(False), Request([5], 1, 3), timeout=10.0))
    assert (found.failure, found.retry_after) == ("HTTP 503", 7)
    assert found.start < found.ended


def test_a_server_that_refuses_the_first_request_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer("busy").running() as server:
        assert benchmark(server) == 1
    assert "the first request failed: HTTP 503" in capsys.readouterr().err


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        port = server.port
    assert command.main(["--port", str(port), "--num-prompts", "1", "--no-progress"]) == 1
    assert "connection failed" in capsys.readouterr().err


def test_a_slow_server_is_a_timeout(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeServer().running() as server:
        assert benchmark(server, "--warmups", "0", "--timeout", str(FIRST_TOKEN / 10)) == 1
    assert "6 x no end within 0.005 s" in capsys.readouterr().out


def test_a_file_needs_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--dataset", "x.json"]) == 1
    assert "needs --tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(("theirs", "ours"), command.OTHER_NAMES.items())
def test_options_of_other_load_generators_are_answered_with_ours(
    theirs: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert hasattr(command.make_parser().parse_args([]), ours)
    assert command.main([f"--{theirs.replace('_', '-')}", "1"]) == 2
    assert f"Here it is --{ours}." in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--num-prompts", "0"], ["--request-rate", "-1"], ["--request-rate", "nan"]]
)
def test_senseless_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments) == 2
    assert "must be" in capsys.readouterr().err


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with FakeServer().running() as server:
        assert benchmark(server, "--plot", str(tmp_path / "p.png")) == 0
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
