"""Published trace formats, as their publishers write them."""

from __future__ import annotations

import json

import pytest

from lightllm.errors import InvalidOption
from lightllm.router.memory.radix_cache import common_length
from lightllm.simulate.trace_files import FileTrace

MOONCAKE = [
    {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 500, "input_length": 1300, "output_length": 7, "hash_ids": [0, 1, 3]},
    {"timestamp": 2000, "input_length": 600, "output_length": 9, "hash_ids": [4]},
]
BURST_GPT = """Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,0,1087,Conversation log
118,GPT-4,417,276,693,API log
"""
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2225670,879,55
"""


def read(tmp_path, text: str, count: int = 100, rate: float | None = None) -> list:
    path = tmp_path / "trace"
    path.write_text(text)
    trace = FileTrace(path)
    return list(trace.requests(count, trace.recorded_rate(count) if rate is None else rate, 0))


def test_mooncake_hash_ids_become_shared_prefixes(tmp_path):
    first, second, third = read(tmp_path, "\n".join(map(json.dumps, MOONCAKE)))
    assert [r.arrival for r in (first, second, third)] == pytest.approx([0.0, 0.5, 2.0])
    assert [len(r.prompt_ids) for r in (first, second, third)] == [1100, 1300, 600]
    assert [r.output_len for r in (first, second, third)] == [5, 7, 9]
    assert common_length(first.prompt_ids, second.prompt_ids) == 1024
    assert common_length(first.prompt_ids, third.prompt_ids) == 0
    assert (first.prompt_ids >= 0).all()


def test_burst_gpt_leaves_out_failures(tmp_path):
    requests = read(tmp_path, BURST_GPT)
    assert [(r.arrival, len(r.prompt_ids), r.output_len) for r in requests] == [
        (0.0, 472, 18), (pytest.approx(113.0), 417, 276),
    ]  # fmt: skip


def test_azure_times_are_dates(tmp_path):
    requests = read(tmp_path, AZURE)
    assert [len(r.prompt_ids) for r in requests] == [374, 396, 879]
    assert [r.arrival for r in requests] == pytest.approx([0.0, 4.314579, 4.541977], abs=1e-4)
    assert common_length(requests[0].prompt_ids, requests[1].prompt_ids) == 0


def test_a_rate_stretches_time(tmp_path):
    requests = read(tmp_path, "\n".join(map(json.dumps, MOONCAKE)), rate=10.0)
    assert [r.arrival for r in requests] == pytest.approx([0.0, 0.05, 0.2])
    assert [r.arrival for r in read(tmp_path, AZURE, rate=float("inf"))] == [0.0, 0.0, 0.0]


def test_count_takes_the_first_requests(tmp_path):
    assert len(read(tmp_path, AZURE, count=2)) == 2


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", '{"timestamp": 1}\n', "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n"],
)
def test_other_files_are_invalid_options(tmp_path, text):
    with pytest.raises(InvalidOption, match="trace"):
        read(tmp_path, text)


def test_a_missing_file_is_an_invalid_option(tmp_path):
    with pytest.raises(InvalidOption, match="nothing_here"):
        FileTrace(tmp_path / "nothing_here")
