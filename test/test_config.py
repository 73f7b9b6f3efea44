"""Options: where values come from and who wins, every check, upstream's names, the way to the children."""

import argparse
import dataclasses
import re

import pytest

from lightllm import __version__
from lightllm.config import ServerConfig, options
from lightllm.config_sources import make_parser, parse, verify
from lightllm.errors import InvalidOption
from lightllm.foreign_options import NOT_YET, TRANSLATED, WITHOUT_EFFECT

OPTIONS = options()


def config_of(*argv: str, **environ: str) -> ServerConfig:
    return parse(argv, environ)[0]


def other_value(field, option):  # a valid one
    if field.default is False:
        return True
    if option.choices:
        return next(choice for choice in option.choices if choice != field.default)
    kind = {int: 3, float: 0.25, str: "a=b" if option.extends else "other"}[option.type]
    value = [kind, kind] if option.nargs == "+" else kind
    values = (value, "http://other:1", "none", "tcp://other:1")
    return next(one for one in values if option.check is None or option.check(one))


def as_arguments(field, value) -> list[str]:
    if value is True:
        return [f"--{field.name}"]
    return [f"--{field.name}", *map(str, value if isinstance(value, list) else [value])]


@pytest.mark.parametrize(("field", "option"), OPTIONS, ids=lambda v: getattr(v, "name", ""))
def test_every_option_comes_from_each_source_and_reaches_the_children(field, option, tmp_path):
    value = other_value(field, option)
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    yaml = tmp_path / "options.yaml"
    yaml.write_text(f"{field.name}: {value}\n")
    for config in (
        config_of(*as_arguments(field, value)),
        config_of(**{f"LIGHTLLM_{field.name.upper()}": text}),
        config_of("--config", str(yaml)),
    ):
        assert getattr(config, field.name) == value
        assert ServerConfig.from_json(config.to_json()) == config
        rest = {f.name for f, _ in OPTIONS} - {field.name}
        assert all(getattr(config, name) == getattr(ServerConfig(), name) for name in rest)


def test_command_line_wins_over_environment_wins_over_yaml_wins_over_default(tmp_path):
    yaml = tmp_path / "options.yaml"
    yaml.write_text("port: 1\nhost: yaml\nmax_body_mb: 3\n")
    environ = {"LIGHTLLM_PORT": "2", "LIGHTLLM_HOST": "environment"}
    config = config_of("--config", str(yaml), "--port", "3", **environ)
    assert (config.port, config.host, config.max_body_mb, config.tp) == (3, "environment", 3, 1)


def test_a_config_is_never_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ServerConfig().port = 1


def test_mem_faction_is_the_old_spelling_everywhere(tmp_path):
    yaml = tmp_path / "options.yaml"
    yaml.write_text("mem_faction: 0.5\n")
    assert config_of("--mem_faction", "0.5").mem_fraction == 0.5
    assert config_of("--config", str(yaml)).mem_fraction == 0.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "65536"], "--port must be a port number, 0 to 65535, got 65536"),
        (["--port", "-1"], "--port must be"),
        (["--httpserver_workers", "0"], "at least 1, got 0"),
        (["--max_body_mb", "0"], "--max_body_mb must be at least 1"),
        (["--request_timeout", "-1"], "--request_timeout must be 0 or more"),
        (["--request_timeout", "nan"], "--request_timeout must be 0 or more"),
        (["--drain_timeout", "-0.1"], "--drain_timeout must be 0 or more"),
        (["--startup_timeout", "0"], "--startup_timeout must be more than 0"),
        (["--stream_interval", "0"], "--stream_interval must be at least 1"),
        (["--log_stats_interval", "0"], "--log_stats_interval must be at least 1"),
        (["--cpu_threads", "-1"], "--cpu_threads must be at least 0"),
        (["--max_total_token_num", "1"], "--max_total_token_num must be at least 2"),
        (["--mem_fraction", "1"], "--mem_fraction must be between 0 and 1"),
        (["--mem_fraction", "nan"], "--mem_fraction must be between 0 and 1"),
        (["--max_req_total_len", "1"], "--max_req_total_len must be at least 2"),
        (["--default_max_tokens", "0"], "--default_max_tokens must be at least 1"),
        (["--running_max_req_size", "0"], "--running_max_req_size must be at least 1"),
        (["--max_waiting_requests", "0"], "--max_waiting_requests must be at least 1"),
        (["--batch_max_tokens", "0"], "--batch_max_tokens must be at least 1"),
        (["--chunked_prefill_size", "0"], "--chunked_prefill_size must be at least 1"),
        (["--tp", "0"], "--tp must be at least 1"),
        (["--max_total_token_num", "10", "--max_req_total_len", "11"], "--max_req_total_len 11 exceeds"),
        (["--batch_max_tokens", "8", "--chunked_prefill_size", "16"], "--batch_max_tokens 8 is below"),
        (["--health_timeout", "-1"], "--health_timeout must be 0 or more"),
        (["--push_interval", "0"], "--push_interval must be more than 0"),
        (["--metric_gateway", "ftp://host"], "--metric_gateway must be HOST:PORT, http://HOST:PORT or"),
        (["--metric_gateway", "http://me:secret@host"], "without a user"),
        (["--otlp_traces_endpoint", "collector:4317"], "--otlp_traces_endpoint must be http://HOST:PORT or"),
        (["--otlp_traces_endpoint", "grpc://collector:4317"], "--otlp_traces_endpoint must be"),
        (["--metric_gateway", "host:x"], "--metric_gateway must be"),
        (["--metric_gateway", "file:///etc/passwd"], "--metric_gateway must be"),
        (["--grouping_key", "instance"], "--grouping_key must be LABEL=VALUE"),
        (["--grouping_key", "a=b", "job=x"], "another label than job"),
        (["--grouping_key", "a-b=c"], "--grouping_key must be LABEL=VALUE"),
        (["--data_type", "int3"], "--data_type: invalid choice: 'int3'"),
        (["--mem", "0.5"], "Unrecognized arguments: --mem"),
        (["--tp", "two"], "--tp: invalid int value: 'two'"),
        (["--config", "/no/such.yaml"], "--config /no/such.yaml: .*No such file"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_an_error_that_names_option_and_limit(argv, message):
    with pytest.raises(InvalidOption, match=message):
        parse(argv, {})


def test_every_check_is_made_for_values_of_every_source():
    for field, option in OPTIONS:
        if option.check is not None:
            with pytest.raises(InvalidOption, match=f"--{field.name} must be"):
                verify(dataclasses.replace(ServerConfig(), **{field.name: -5}))
        if option.choices:
            with pytest.raises(InvalidOption, match="is not one of"):
                config_of(**{f"LIGHTLLM_{field.name.upper()}": "nonsense"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot: 1", "unknown option 'prot'"),
        ("port: [1, 2]", "port in .* must be a single value"),
        ("port: many", "port in .* must be a whole number, got 'many'"),
        ("eos_id: [a]", "eos_id in .* must be a whole number"),
        ("mem_fraction: x", "must be a number"),
        ("trust_remote_code: maybe", "must be true or false"),
        ("just text", "must hold `option: value` lines"),
        ("a: [", "--config"),
    ],
)
def test_a_wrong_yaml_entry_is_an_error_that_names_it(text, message, tmp_path):
    yaml = tmp_path / "options.yaml"
    yaml.write_text(text)
    with pytest.raises(InvalidOption, match=message):
        parse(["--config", str(yaml)], {})


def test_yaml_without_a_value_and_an_empty_file_leave_the_defaults(tmp_path):
    yaml = tmp_path / "options.yaml"
    yaml.write_text("port:\n")
    assert config_of("--config", str(yaml)) == ServerConfig()
    yaml.write_text("")
    assert config_of("--config", str(yaml)) == ServerConfig()


def test_a_port_that_is_neither_a_number_nor_a_link_is_an_error():
    with pytest.raises(InvalidOption, match="LIGHTLLM_PORT"):
        config_of(LIGHTLLM_PORT="udp")


SERVICE_LINKS = {
    "LIGHTLLM_SERVICE_HOST": "10.0.0.1",
    "LIGHTLLM_SERVICE_PORT": "80",
    "LIGHTLLM_SERVICE_PORT_HTTP": "80",
    "LIGHTLLM_PORT": "tcp://10.0.0.1:80",
    "LIGHTLLM_PORT_80_TCP": "tcp://10.0.0.1:80",
    "LIGHTLLM_PORT_80_TCP_PROTO": "tcp",
    "LIGHTLLM_PORT_80_TCP_PORT": "80",
    "LIGHTLLM_PORT_80_TCP_ADDR": "10.0.0.1",
    "LIGHTLLM_NCCL_PORT": "udp://10.0.0.2:9",
    "LIGHTLLM_NCCL_SERVICE_HOST": "10.0.0.2",
    "LIGHTLLM_TP_PORT": "sctp://10.0.0.3:80",
    "LIGHTLLM_TP_SERVICE_PORT": "80",
}
"""What Kubernetes sets in a pod beside services named lightllm, lightllm-nccl and lightllm-tp."""


def test_the_links_to_services_that_kubernetes_sets_are_no_options():
    assert parse([], SERVICE_LINKS) == (ServerConfig(), [])
    assert config_of("--port", "81", **SERVICE_LINKS).port == 81
    with pytest.raises(InvalidOption, match="LIGHTLLM_TP must be a whole number, got 'tcp://x:1'"):
        config_of(LIGHTLLM_TP="tcp://x:1")
    assert (
        config_of(LIGHTLLM_MODEL_DIR="tcp://x:1").model_dir == "tcp://x:1"
    )  # an option of text may say what it wants


@pytest.mark.parametrize("value", ["", "  "])
def test_an_empty_variable_is_no_value(value):
    environ = {f"LIGHTLLM_{field.name.upper()}": value for field, _ in OPTIONS if "api_key" not in field.name}
    assert parse([], environ) == (ServerConfig(), [])


def test_an_empty_variable_leaves_what_the_file_says(tmp_path):
    yaml = tmp_path / "options.yaml"
    yaml.write_text("port: 81\n")
    assert config_of("--config", str(yaml), LIGHTLLM_PORT="").port == 81


def test_an_empty_key_is_told_for_nobody_needs_one_then():
    config, warnings = parse([], {"LIGHTLLM_API_KEY": ""})
    assert config.api_key is None and warnings == ["LIGHTLLM_API_KEY is empty: clients need no key"]
    assert parse(["--api_key", "k"], {"LIGHTLLM_API_KEY": ""})[1] == []
    assert parse([], {"LIGHTLLM_API_KEY": "k"})[1] == []
    admin = parse(["--api_key", "k"], {"LIGHTLLM_ADMIN_API_KEY": " "})
    assert admin[0].admin_api_key is None and admin[1] == [
        "LIGHTLLM_ADMIN_API_KEY is empty: there is no admin key"
    ]


@pytest.mark.parametrize(
    ("mode", "text", "warned"),
    [
        (0o600, "api_key: k", False),
        (0o644, "api_key: k", True),
        (0o640, "api_key: [k, l]", True),
        (0o644, "admin_api_key: k", True),
        (0o644, "port: 1", False),
    ],
)
def test_a_file_with_keys_that_others_can_read_is_warned_of(tmp_path, mode, text, warned):
    yaml = tmp_path / "options.yaml"
    yaml.write_text(text)
    yaml.chmod(mode)
    warnings = parse(["--config", str(yaml)], {})[1]
    assert (
        warnings == [f"--config {yaml} holds API keys and can be read by others: chmod 600 {yaml}"] * warned
    )


def test_mock_backend_needs_no_value():
    assert config_of("--mock_backend").mock_backend == ""
    assert config_of("--mock_backend", "--port", "1").mock_backend == ""
    assert config_of("--mock_backend", "step_ms=2").mock_backend == "step_ms=2"


def test_labels_of_the_push_gateway_may_be_given_one_by_one_or_together():
    config = config_of("--grouping_key", "a=b", "--grouping_key", "c=d=e", "f=g")
    assert config.grouping_key == ["a=b", "c=d=e", "f=g"]
    for address in ("gateway:9091", "10.0.0.1", "[::1]:9091", "http://gateway/prefix", "https://gateway:443"):
        assert config_of("--metric_gateway", address).metric_gateway == address


def test_upstream_options_that_are_not_built_yet_are_errors_unless_they_ask_for_nothing():
    for name, neutral in NOT_YET.items():
        if neutral is False:
            argv = [f"--{name}"]
        else:
            argv = [f"--{name}", "something"]
            if neutral is not None:
                assert config_of(f"--{name}", str(neutral)) == ServerConfig()
        with pytest.raises(InvalidOption, match=f"--{name}.* is not supported yet. Leave it out."):
            parse(argv, {})


def test_upstream_options_without_effect_are_accepted_with_a_warning():
    for name, count in WITHOUT_EFFECT.items():
        config, warnings = parse([f"--{name}", *["1"] * abs(count)], {})
        assert config == ServerConfig()
        assert warnings == [f"without effect in this server: --{name}"]


def test_one_line_names_all_options_without_effect():
    argv = ["--enable_cpu_cache", "--cpu_cache_storage_size", "20", "--disable_shm_warning"]
    config, warnings = parse(argv, {})
    assert config == ServerConfig()
    assert warnings == [
        "without effect in this server: --enable_cpu_cache, --cpu_cache_storage_size, --disable_shm_warning"
    ]


@pytest.mark.parametrize(
    ("argv", "ours"),
    [
        (
            ["--performance_mode", "personal"],
            {"running_max_req_size": 6, "batch_max_tokens": 2048, "chunked_prefill_size": 1024, "graph_max_batch_size": 6},
        ),
        (
            ["--p_mode", "personal", "--running_max_req_size", "9"],
            {"running_max_req_size": 9, "batch_max_tokens": 2048, "chunked_prefill_size": 1024, "graph_max_batch_size": 6},
        ),
        (["--enable_profiling", "torch_profiler"], {"profile_dir": "/traces"}),
        (["--enable_profiling", "torch_profiler", "--profile_dir", "x"], {"profile_dir": "x"}),
        (["--enable_profiling", "nvtx"], {"enable_nvtx": True}),
        (["--llm_prefill_att_backend", "auto", "--llm_decode_att_backend", "auto"], {}),
        (["--llm_prefill_att_backend", "fa3"], {"attention_backend": "fa3,triton"}),
        (
            ["--llm_prefill_att_backend", "auto", "flashqla", "--llm_decode_att_backend", "flashinfer"],
            {"attention_backend": "triton,flashinfer"},
        ),
        (["--embed_cache_storage_size", "0.5"], {"cache_capacity_bytes": 2**29}),
    ],
)  # fmt: skip
def test_upstream_options_that_mean_the_same_as_ours_are_obeyed(argv, ours):
    environ = {"LIGHTLLM_TRACE_DIR": "/traces"}
    assert parse(argv, environ) == (dataclasses.replace(ServerConfig(), **ours), [])


def test_every_translated_option_says_which_of_ours_it_sets():
    for name, how in TRANSLATED.items():
        assert set(how["ours"]) <= {field.name for field, _ in OPTIONS}, name
        for bad in (how["choices"][0] + "x" if "choices" in how else "x", "0"):
            if "choices" in how or "type" in how:
                with pytest.raises(InvalidOption, match=name):
                    parse([f"--{name}", bad], {})


def test_help_describes_every_option_and_its_default():
    text = " ".join(make_parser().format_help().split())
    for field, option in OPTIONS:
        assert f"--{field.name}" in text
        assert " ".join(option.help.split()[:3]) in text
    assert argparse.SUPPRESS not in text


@pytest.mark.parametrize(("field", "option"), OPTIONS, ids=lambda v: getattr(v, "name", ""))
def test_dashes_stand_for_underscores_in_names_only(field, option, tmp_path):
    value = other_value(field, option)
    words = as_arguments(field, value)
    assert config_of(words[0].replace("_", "-"), *words[1:]) == config_of(*words)
    yaml = tmp_path / "options.yaml"
    yaml.write_text(f"{field.name.replace('_', '-')}: {value}\n")
    assert config_of("--config", str(yaml)) == config_of(*words)
    assert config_of("--model-dir=a-b--c-d", "--model-name", "e-f").model_dir == "a-b--c-d"


@pytest.mark.parametrize(
    ("argv", "remedy"),
    [
        (["--modle_dir", "x"], "Did you mean --model_dir?"),
        (["--prot=1"], "Did you mean --port?"),
        (["--tensor-paralel-size", "2"], "Did you mean --tp?"),
        (["--confg", "x"], "Did you mean --config?"),
        (["--run_mod", "x"], "Did you mean --run_mode?"),
        (["--xyzzy"], "See --help."),
        (["stray"], "See --help."),
        (["-p", "1"], "See --help."),
    ],
)
def test_an_unknown_option_is_answered_with_what_was_meant(argv, remedy):
    with pytest.raises(InvalidOption) as error:
        parse(argv, {})
    assert str(error.value).endswith(remedy) and "Unrecognized arguments" in str(error.value)


def test_a_yaml_file_is_answered_in_the_same_way(tmp_path):
    yaml = tmp_path / "options.yaml"
    for name, remedy in (
        ("modle-dir", "Did you mean model_dir?"),
        ("max-model-len", "Here it is max_req_total_len."),
    ):
        yaml.write_text(f"{name}: 1\n")
        with pytest.raises(InvalidOption, match=re.escape(remedy)):
            config_of("--config", str(yaml))


def test_a_variable_that_is_nearly_an_option_is_warned_of():
    environ = {
        "LIGHTLLM_MODLE_DIR": "x",
        "LIGHTLLM_CPU_KIND": "avx2",
        "LIGHTLLM_RUNTIME_BASE": "x",
        "LIGHTLLM_X": "y",
    }
    assert parse([], environ)[1] == ["LIGHTLLM_MODLE_DIR is no option: did you mean LIGHTLLM_MODEL_DIR?"]


def test_paths_may_begin_with_a_tilde_and_addresses_may_have_brackets(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "o.yaml").write_text("chat_template: ~/t.jinja\n")
    config = config_of(
        "--config", "~/o.yaml", "--model_dir", "~/m", "--host", "[::1]", LIGHTLLM_CLUSTER_SECRET_FILE="~/s"
    )
    assert config.model_dir == str(tmp_path / "m") and config.chat_template == str(tmp_path / "t.jinja")
    assert config.cluster_secret_file == str(tmp_path / "s") and config.host == "::1"


def test_version_is_told(capsys):
    with pytest.raises(SystemExit) as end:
        parse(["--version"], {})
    assert end.value.code == 0 and capsys.readouterr().out == f"lightllm {__version__}\n"
