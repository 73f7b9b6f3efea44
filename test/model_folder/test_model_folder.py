"""What a model folder says about itself, and how --model_dir becomes a folder."""

import json
import time
from types import SimpleNamespace

import pytest

from lightllm import demo
from lightllm.errors import InvalidModel
from lightllm.model_folder.config import eos_token_ids, read_model_config, vocab_size
from lightllm.model_folder.generation import generation_defaults
from lightllm.model_folder.lengths import context_length
from lightllm.model_folder.location import resolve_model_dir


@pytest.fixture
def folder(tmp_path):
    def write(config=None, generation=None, tokenizer=None):
        for name, value in (
            ("config.json", {"vocab_size": 10} if config is None else config),
            ("generation_config.json", generation),
            ("tokenizer_config.json", tokenizer),
        ):
            if value is not None:
                (tmp_path / name).write_text(value if isinstance(value, str) else json.dumps(value))
        return str(tmp_path)

    return write


def test_nested_text_config_lies_over_the_outer_keys(folder):
    config = {
        "model_type": "outer",
        "eos_token_id": 3,
        "text_config": {"model_type": "inner", "eos_token_id": None},
    }
    assert read_model_config(folder(config))["model_type"] == "inner"
    assert eos_token_ids(folder(config)) == [3]


@pytest.mark.parametrize(
    ("config", "generation", "override", "expected"),
    [
        ({"eos_token_id": 1}, {"eos_token_id": [2, 3, 2]}, None, [2, 3]),
        ({"eos_token_id": 1}, {"eos_token_id": 2}, [7], [7]),
        ({"eos_token_id": [4, 0]}, {"eos_token_id": None}, None, [4, 0]),
        ({"eos_token_id": 0}, None, None, [0]),
        ({"vocab_size": 5}, None, None, []),
    ],
)
def test_eos_ids_override_then_generation_config_then_config(folder, config, generation, override, expected):
    assert eos_token_ids(folder(config, generation), override) == expected


@pytest.mark.parametrize("value", ["</s>", [1, "x"], True, -1, 1.5])
def test_eos_id_of_a_wrong_type_names_the_file(folder, value):
    with pytest.raises(InvalidModel, match=r"eos_token_id in .*generation_config\.json"):
        eos_token_ids(folder(generation={"eos_token_id": value}))


def test_generation_defaults_hold_only_what_is_stated(folder):
    generation = {
        "temperature": 0.6, "top_p": None, "top_k": 0, "repetition_penalty": 1.05, "do_sample": True,
        "max_new_tokens": 99, "max_length": 20, "transformers_version": "4.1",
    }  # fmt: skip
    assert generation_defaults(folder(generation=generation)) == {
        "temperature": 0.6, "top_k": -1, "repetition_penalty": 1.05, "do_sample": True,
    }  # fmt: skip


def test_generation_defaults_without_a_file_are_empty(folder):
    assert generation_defaults(folder()) == {}


def test_generation_defaults_that_cannot_be_served_are_left_out(folder):
    assert generation_defaults(folder(generation={"top_p": 0.0, "min_p": 0.1})) == {"min_p": 0.1}
    # LightLLM's own API has no such penalty: as a default it would refuse requests that never named it.
    assert generation_defaults(folder(generation={"repetition_penalty": 0.9})) == {}


def test_generation_default_of_a_wrong_type_names_the_file(folder):
    with pytest.raises(InvalidModel, match=r"temperature in .*generation_config\.json must be a number"):
        generation_defaults(folder(generation={"temperature": "hot"}))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 4096}, 4096),
        ({"n_positions": 1024}, 1024),
        ({"seq_length": 8192}, 8192),
        ({"text_config": {"max_position_embeddings": 512}, "vocab_size": 1}, 512),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 8192),
        ({"max_position_embeddings": 32768, "seq_length": 8192, "model_type": "qwen"}, 8192),
        ({"max_position_embeddings": 32768, "rope_scaling":
            {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}, 131072),
        ({"max_position_embeddings": 163840, "rope_scaling":
            {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}}, 163840),
        ({"max_position_embeddings": 131072, "rope_scaling":
            {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling":
            {"rope_type": "longrope", "factor": 32.0}}, 131072),
        ({"max_position_embeddings": 131072, "model_type": "gemma3_text", "rope_scaling":
            {"rope_type": "linear", "factor": 8.0}}, 131072),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}, 4096),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "default"}}, 2048),
        ({"max_position_embeddings": 2048, "rope_scaling": None}, 2048),
    ],
)  # fmt: skip
def test_context_length(folder, config, expected):
    assert context_length(folder(config)) == expected


def test_context_length_from_the_tokenizer_unless_it_is_no_limit(folder):
    assert context_length(folder({"vocab_size": 1}, tokenizer={"model_max_length": 777})) == 777
    assert context_length(folder({"vocab_size": 1}, tokenizer={"model_max_length": 1e30})) == 2048


def test_vocab_size(folder):
    assert vocab_size(folder({"vocab_size": 32000})) == 32000
    with pytest.raises(InvalidModel, match="names no vocab_size"):
        vocab_size(folder({"vocab_size": None, "x": 1}))


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": ' + "9" * 5000 + "}", '"x"', "\x00", "[" * 100_000])
def test_malformed_json_names_the_file(folder, text):
    with pytest.raises(InvalidModel, match=r"config\.json"):
        read_model_config(folder(text))


# -- --model_dir


def lines():
    collected = []
    return collected, collected.append


def test_no_model_dir_is_the_demo_model(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(demo, "MODEL_DIR", str(tmp_path))
    assert resolve_model_dir(None, print) == str(tmp_path)


def test_local_folder_is_taken_as_it_is(folder):
    path = folder()
    collected, progress = lines()
    assert resolve_model_dir(path, progress) == path
    assert not collected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/does/not/exist", "does not exist"),
        ("./nor/this", "does not exist"),
        ("a/b/c", "does not exist"),
        ("two words", "does not exist"),
        ("", "does not exist"),
    ],
)
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name, message):
    with pytest.raises(InvalidModel, match=message) as failed:
        resolve_model_dir(name, print)
    assert "hub id" in failed.value.remedy


def test_folder_without_config_and_plain_file_are_refused(tmp_path):
    with pytest.raises(InvalidModel, match=r"has no config\.json"):
        resolve_model_dir(str(tmp_path), print)
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(InvalidModel, match="is a file"):
        resolve_model_dir(str(tmp_path / "model.safetensors"), print)


class Hub:
    """A hub in place of huggingface_hub: what it has, or how it fails."""

    def __init__(self, monkeypatch, files=(), error=None, cached=None, downloaded=None):
        import huggingface_hub

        self.patterns = None

        class Api:
            def model_info(self, hub_id, timeout):
                if error is not None:
                    raise error
                return SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])

        def snapshot_download(hub_id, local_files_only=False, allow_patterns=None, ignore_patterns=None):
            if local_files_only:
                if cached is None:
                    raise FileNotFoundError("nothing in the cache")
                return cached
            self.patterns = allow_patterns
            return downloaded

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


@pytest.mark.parametrize(
    ("files", "weights"), [(["a.safetensors", "a.bin"], "*.safetensors"), (["a.bin"], "*.bin")]
)
def test_hub_id_is_downloaded_in_one_weight_format(folder, monkeypatch, files, weights):
    path = folder()
    hub = Hub(monkeypatch, files, downloaded=path)
    collected, progress = lines()
    assert resolve_model_dir("org/model-1.0", progress) == path
    assert hub.patterns[-1] == weights
    assert any("org/model-1.0" in line for line in collected)


def test_offline_takes_the_cached_copy_and_says_so(folder, monkeypatch):
    path = folder()
    Hub(monkeypatch, error=ConnectionError("no route"), cached=path)
    collected, progress = lines()
    assert resolve_model_dir("org/model", progress) == path
    assert "local cache" in collected[-1]


def test_offline_without_a_copy_is_one_line_with_a_remedy(monkeypatch):
    Hub(monkeypatch, error=ConnectionError("no route\nto host"))
    with pytest.raises(InvalidModel, match="cannot be reached") as failed:
        resolve_model_dir("org/model", print)
    assert "\n" not in str(failed.value) and failed.value.remedy


def test_offline_mode_of_the_client_is_one_line_with_a_remedy(monkeypatch, tmp_path):
    """The real client, with its own switch for being offline."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InvalidModel, match="cannot be reached") as failed:
        resolve_model_dir("org/model", print)
    assert "\n" not in str(failed.value)


def test_a_hub_that_cannot_be_reached_is_said_at_once_and_once(monkeypatch, tmp_path, caplog, capfd):
    """The real client; nobody listens at port 9."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    begin = time.monotonic()
    with pytest.raises(InvalidModel, match="cannot be reached"):
        resolve_model_dir("org/model", lambda line: None)
    assert time.monotonic() - begin < 5
    assert caplog.messages == [] and capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("RepositoryNotFoundError", "neither a local folder nor a model"),
        ("GatedRepoError", "granted by its owners"),
    ],
)
def test_unknown_and_gated_models_are_explained(monkeypatch, error, message):
    import huggingface_hub.errors

    kind = getattr(huggingface_hub.errors, error)
    Hub(monkeypatch, error=kind.__new__(kind))
    with pytest.raises(InvalidModel, match=message):
        resolve_model_dir("org/model", print)
