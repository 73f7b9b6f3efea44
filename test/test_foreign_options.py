"""Options by the names that other servers have for them are answered with ours."""

import pytest

from lightllm.config import ServerConfig, options
from lightllm.config_sources import parse
from lightllm.errors import InvalidOption
from lightllm.foreign_options import ANSWERS, NOT_YET, OUR_OPTIONS

OPTIONS = list(options())


@pytest.mark.parametrize(("theirs", "ours"), OUR_OPTIONS.items())
def test_options_of_other_servers_are_answered_with_ours(theirs, ours):
    assert (
        ours in {field.name for field, _ in OPTIONS} | NOT_YET.keys() and theirs not in ServerConfig.__dict__
    )
    with pytest.raises(InvalidOption, match=f"Here it is --{ours}\\."):
        parse([f"--{theirs.replace('_', '-')}", "1"], {})


@pytest.mark.parametrize(
    ("argv", "remedy"),
    [
        (["-m", "x"], "Here it is --model_dir."),
        (["-c", "4096"], "Here it is --max_req_total_len."),
        (["-np", "4"], "Here it is --running_max_req_size."),
        (["-ngl", "99"], "Leave it out: a model is on the --device as a whole."),
        (["-x", "1"], "See --help."),
    ],
)
def test_short_options_of_other_servers_are_answered_too(argv, remedy):
    with pytest.raises(InvalidOption) as error:
        parse(argv, {})
    assert str(error.value).endswith(remedy)


@pytest.mark.parametrize(("theirs", "answer"), ANSWERS.items())
def test_options_that_nothing_corresponds_to_get_an_answer_too(theirs, answer):
    with pytest.raises(InvalidOption) as error:
        parse([f"--{theirs}"], {})
    assert str(error.value).endswith(answer)


@pytest.mark.parametrize(
    ("words", "kv_type", "notes"),
    [
        (["triton_int8kv"], "int8kv", ["--mode triton_int8kv is --llm_kv_type int8kv now"]),
        (
            ["ppl_int8kv", "triton_gqa_attention"],
            "int8kv",
            [
                "--mode ppl_int8kv is --llm_kv_type int8kv now",
                "without effect in this server: --mode triton_gqa_attention",
            ],
        ),
        (["triton_flashdecoding"], "None", ["without effect in this server: --mode triton_flashdecoding"]),
    ],
)
def test_lightllms_older_modes_name_kinds_of_kv_memory(words, kv_type, notes):
    config, warnings = parse(["--mode", *words], {})
    assert config.llm_kv_type == kv_type and warnings == notes
    assert parse(["--mode", *words, "--llm_kv_type", "None"], {})[0].llm_kv_type == "None"
