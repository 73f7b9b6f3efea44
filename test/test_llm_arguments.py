"""What the offline engine says to options, parameters and arguments that it does not know or cannot take."""

import numpy as np
import pytest
from support.checkpoints import make_checkpoint

from lightllm import LLM, SamplingParams
from lightllm.errors import InvalidModel, InvalidOption, InvalidParameter


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("plain") / "model", "llama", num_hidden_layers=1)
    with LLM(
        str(path), data_type="fp32", max_total_token_num=1000, running_max_req_size=4, cpu_threads=1
    ) as llm:
        yield llm


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tensor_parallel_size": 2}, "LLM has no option tensor_parallel_size. Here it is tp."),
        ({"model": "x"}, "Here it is model_dir."),
        ({"gpu_memory_utilization": 0.5}, "Here it is mem_fraction."),
        ({"seed": 1}, "Every request may carry its own seed."),
        ({"data_typ": "fp32"}, "Did you mean data_type?"),
        ({"xyzzy": 1}, "See the options of the server."),
        ({"tp": "2"}, r"Expected `int`, got `str` - at `\$.tp`"),
        ({"mem_fraction": "0.5"}, r"got `str` - at `\$.mem_fraction`"),
        ({"eos_id": 2}, r"got `int` - at `\$.eos_id`"),
        ({"disable_cudagraph": 1}, r"got `int` - at `\$.disable_cudagraph`"),
        ({"model_dir": 5}, r"got `int` - at `\$.model_dir`"),
    ],
)
def test_an_option_that_is_unknown_or_of_another_type_says_what_is_wanted(options, words):
    with pytest.raises(InvalidOption, match=words):
        LLM(**options)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("max_tokens", "Here it is max_new_tokens."),
        ("stop", "Here it is stop_sequences."),
        ("guided_regex", "Here it is regular_constraint."),
        ("temprature", "Did you mean temperature?"),
        ("xyzzy", "SamplingParams has no xyzzy."),
    ],
)
def test_a_sampling_parameter_of_another_name_is_answered_with_ours(theirs, ours):
    with pytest.raises(TypeError, match=ours):
        SamplingParams(**{theirs: 5})
    with pytest.raises(TypeError, match="positional"):
        SamplingParams(5)


@pytest.mark.parametrize(
    ("prompts", "params", "words"),
    [
        ("x", {"max_new_tokens": 3}, "sampling_params must be SamplingParams, got dict"),
        (["x"], ["greedy"], "sampling_params must be SamplingParams, got str"),
        ("x", SamplingParams(temperature="hot"), "Expected `float`, got `str`"),
        (5, None, "prompts must be texts, lists of token ids or dicts, got int"),
        ([None], None, "a prompt must be a text or a list of token ids"),
        ([["a", "b"]], None, "a prompt must be a text or a list of token ids"),
        ({"inputs": "x"}, None, "prompt has no field 'inputs', only prompt, prompt_token_ids"),
    ],
)
def test_arguments_of_another_type_say_what_is_wanted(llm, prompts, params, words):
    with pytest.raises(InvalidParameter, match=words):
        llm.generate(prompts, params, use_tqdm=False)


@pytest.mark.parametrize("ids", [np.array([5, 6], np.int32), [np.int64(5), np.int64(6)], (5, 6)], ids=repr)
def test_token_ids_may_be_numpys(llm, ids):
    params = SamplingParams(max_new_tokens=3, ignore_eos=True, do_sample=False)
    outputs = [llm.generate([prompt], params, use_tqdm=False)[0] for prompt in (ids, [5, 6])]
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    with pytest.raises(InvalidParameter, match="a prompt must be"):
        llm.generate([np.array([0.5])], params, use_tqdm=False)


def test_a_folder_may_be_a_path(tmp_path):
    with pytest.raises(InvalidModel, match="missing"):
        LLM(tmp_path / "missing")
