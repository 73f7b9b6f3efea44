"""The offline engine end to end, on small random checkpoints, against transformers."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
import torch
from support.checkpoints import make_checkpoint

from lightllm import LLM, SamplingParams
from lightllm.errors import (
    BackendFailed,
    InvalidModel,
    InvalidOption,
    InvalidParameter,
    PromptTooLong,
    StartupError,
)

OPTIONS = {"data_type": "fp32", "max_total_token_num": 6000, "running_max_req_size": 40, "cpu_threads": 1}
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=12, ignore_eos=True)
ARCHITECTURES = {
    "llama": {"num_key_value_heads": 2},
    "qwen3": {"num_key_value_heads": 8, "tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def checkpoint(request, tmp_path_factory):
    name = request.param
    return str(make_checkpoint(tmp_path_factory.mktemp(name) / "model", name, **ARCHITECTURES[name]))


@pytest.fixture(scope="module")
def reference(checkpoint):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    path = make_checkpoint(tmp_path_factory.mktemp("plain") / "model", "llama")
    with LLM(str(path), **OPTIONS) as llm:
        yield llm


def make_prompts(count, longest=60):
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(6, 380, (length,), generator=generator).tolist() for length in lengths]


def reference_tokens(model, prompt, count):
    ids = torch.tensor([prompt])
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, eos_token_id=None,
        pad_token_id=0,
    )  # fmt: skip
    return out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("chunk", [16, 4096])
def test_greedy_equals_transformers_alone_and_among_31_others(checkpoint, reference, chunk):
    prompts = make_prompts(32)
    compared = [0, 7, 15, 31]
    expected = {i: reference_tokens(reference, prompts[i], 12) for i in compared}
    with LLM(checkpoint, chunked_prefill_size=chunk, **OPTIONS) as llm:
        together = llm.generate(prompts, GREEDY, use_tqdm=False)
        for i in compared:
            assert together[i].outputs[0].token_ids == expected[i]
        alone = llm.generate(prompts[7], GREEDY, use_tqdm=False)
        assert alone[0].outputs[0].token_ids == expected[7]


def test_log_probabilities_of_answer_and_prompt_equal_transformers(checkpoint, reference):
    prompt = make_prompts(5, 50)[3] + [9] * 20
    params = msgspec.structs.replace(GREEDY, logprobs=3, prompt_logprobs=2, raw_logprobs=True)
    with LLM(checkpoint, chunked_prefill_size=16, **OPTIONS) as llm:
        (result,) = llm.generate([prompt], params, use_tqdm=False)
    answer = result.outputs[0]
    with torch.no_grad():
        table = reference(torch.tensor([prompt + answer.token_ids])).logits[0].float().log_softmax(-1)
    everything = prompt + answer.token_ids
    chosen = [table[i - 1, token].item() for i, token in enumerate(everything) if i > 0]
    assert result.prompt_logprobs[0] is None
    assert result.prompt_logprobs[1:] == pytest.approx(chosen[: len(prompt) - 1], abs=2e-4)
    assert answer.logprobs == pytest.approx(chosen[len(prompt) - 1 :], abs=2e-4)
    for i, top in enumerate(result.prompt_top_logprobs[1:]):
        assert top.logprobs == pytest.approx(table[i].topk(2).values.tolist(), abs=2e-4)
    for i, top in enumerate(answer.top_logprobs):
        assert top.logprobs == pytest.approx(table[len(prompt) - 1 + i].topk(3).values.tolist(), abs=2e-4)


def test_prompt_log_probabilities_of_a_prompt_of_one_token(llama):
    (result,) = llama.generate([[7]], msgspec.structs.replace(GREEDY, prompt_logprobs=0), use_tqdm=False)
    assert result.prompt_logprobs in ([], [None])


def test_same_seed_gives_the_same_tokens_alone_and_among_others(llama):
    params = SamplingParams(max_new_tokens=16, seed=1234, ignore_eos=True)
    others = [
        SamplingParams(max_new_tokens=10 + i, seed=i, ignore_eos=True, **extra)
        for i, extra in enumerate([{}, {"top_p": 0.8}, {"temperature": 0.0}, {"frequency_penalty": 0.5}] * 8)
    ][:31]
    prompts = make_prompts(32)
    alone = llama.generate([prompts[5]], params, use_tqdm=False)[0].outputs[0]
    mixed = others[:5] + [params] + others[5:]
    together = llama.generate(prompts, mixed, use_tqdm=False)[5].outputs[0]
    assert together.token_ids == alone.token_ids
    other_seed = llama.generate([prompts[5]], msgspec.structs.replace(params, seed=99), use_tqdm=False)
    assert other_seed[0].outputs[0].token_ids != alone.token_ids


def test_answers_to_one_prompt_differ_and_the_first_equals_the_single_one(llama):
    params = SamplingParams(max_new_tokens=12, seed=7, ignore_eos=True)
    (one,) = llama.generate("The quick", params, use_tqdm=False)
    (three,) = llama.generate("The quick", msgspec.structs.replace(params, n=3), use_tqdm=False)
    assert [answer.index for answer in three.outputs] == [0, 1, 2]
    assert three.outputs[0].token_ids == one.outputs[0].token_ids
    assert len({tuple(answer.token_ids) for answer in three.outputs}) == 3


def test_results_come_in_the_order_of_the_prompts_with_their_own_parameters(llama):
    params = [msgspec.structs.replace(GREEDY, max_new_tokens=1 + (7 * i) % 11) for i in range(9)]
    results = llama.generate(["One", "The quick brown fox"] * 4 + ["x"], params, use_tqdm=False)
    assert [len(result.outputs[0].token_ids) for result in results] == [1 + (7 * i) % 11 for i in range(9)]
    assert results[1].prompt == "The quick brown fox"
    assert results[1].prompt_token_ids == llama.tokenizer.encode("The quick brown fox")
    assert all(result.outputs[0].finish_reason == "length" for result in results)


def test_stop_string_ends_the_answer_and_is_not_part_of_it(llama):
    free = llama.generate([[40, 41, 42]], GREEDY, use_tqdm=False)[0].outputs[0]
    text = llama.tokenizer.decode(free.token_ids)
    stop = next(character for character in text[3:] if character.isascii() and character.isprintable())
    params = msgspec.structs.replace(GREEDY, stop_sequences=[stop])
    stopped = llama.generate([[40, 41, 42]], params, use_tqdm=False)[0].outputs[0]
    assert stopped.text == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.token_ids == free.token_ids[: len(stopped.token_ids)]


def test_one_stop_string_may_stand_for_a_list_of_one(llama):
    free = llama.generate([[40, 41, 42]], GREEDY, use_tqdm=False)[0].outputs[0].text
    params = SamplingParams(
        temperature=0.0, max_new_tokens=12, ignore_eos=True, stop_sequences=f"{free[3]}\0"
    )
    assert llama.generate([[40, 41, 42]], params, use_tqdm=False)[0].outputs[0].text == free


def test_stop_token_ends_the_answer_at_the_earliest_with_min_new_tokens(llama):
    free = llama.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    params = msgspec.structs.replace(GREEDY, stop_token_ids=[free[2]], min_new_tokens=1)
    stopped = llama.generate([[50, 51]], params, use_tqdm=False)[0].outputs[0]
    assert stopped.token_ids == free[: free.index(free[2]) + 1] and stopped.finish_reason == "stop"
    later = llama.generate([[50, 51]], msgspec.structs.replace(params, min_new_tokens=6), use_tqdm=False)
    assert len(later[0].outputs[0].token_ids) >= 6


def test_streamed_pieces_joined_are_the_text(llama):
    params = SamplingParams(max_new_tokens=30, seed=3, ignore_eos=True)
    whole = llama.generate("The quick", params, use_tqdm=False)[0].outputs[0].text
    assert "".join(llama.stream("The quick", params)) == whole


def test_leaving_a_stream_aborts_it(llama):
    stream = llama.stream("The quick", SamplingParams(max_new_tokens=500, seed=3, ignore_eos=True))
    next(stream)
    with pytest.raises(RuntimeError, match="still running"):
        llama.generate("x", GREEDY, use_tqdm=False)
    stream.close()
    before = llama.generate([[50, 51]], GREEDY, use_tqdm=False)
    assert len(before[0].outputs[0].token_ids) == 12


def test_a_round_ahead_gives_the_same_answers_and_can_be_left(llama, monkeypatch):
    """As on a GPU: the next round is submitted before the present one has ended."""
    params = [
        GREEDY,
        SamplingParams(seed=4, max_new_tokens=9),
        msgspec.structs.replace(GREEDY, max_new_tokens=1),
    ]
    prompts = make_prompts(3, 20)

    def answers():
        return [r.outputs[0].token_ids for r in llama.generate(prompts, params, use_tqdm=False)]

    expected = answers()
    submitted = []
    backend = llama._engine._runner._backend
    monkeypatch.setattr(llama._engine._pump, "_depth", 2)
    original = backend.submit
    monkeypatch.setattr(backend, "submit", lambda round: submitted.append(round.seq) or original(round))
    assert answers() == expected
    stream = llama.stream("The quick", SamplingParams(max_new_tokens=500, seed=3, ignore_eos=True))
    next(stream)
    assert llama._engine._scheduler.in_flight == 1
    stream.close()
    assert answers() == expected


def test_an_interrupted_round_leaves_the_engine_usable(llama, monkeypatch):
    expected = llama.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    backend = llama._engine._runner._backend
    original, calls = backend.submit, []

    def submit(round):
        calls.append(round.seq)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(round)

    monkeypatch.setattr(backend, "submit", submit)
    with pytest.raises(KeyboardInterrupt):
        llama.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    assert llama.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids == expected


def test_a_round_that_fails_once_is_run_again_with_the_same_result(llama, monkeypatch):
    params = [
        GREEDY,
        msgspec.structs.replace(GREEDY, frequency_penalty=1.0),
        SamplingParams(seed=5, max_new_tokens=12),
    ]
    prompts = [[50, 51], [60, 61], [70, 71]]
    expected = [r.outputs[0].token_ids for r in llama.generate(prompts, params, use_tqdm=False)]
    model = llama._engine._runner._backend.model
    original, calls = model.forward, []

    def forward(batch):
        calls.append(batch)
        if len(calls) in (1, 5):
            raise RuntimeError("made to fail")
        return original(batch)

    monkeypatch.setattr(model, "forward", forward)
    assert [r.outputs[0].token_ids for r in llama.generate(prompts, params, use_tqdm=False)] == expected


def test_a_model_that_always_fails_raises_and_leaves_the_engine_usable(llama, monkeypatch):
    model = llama._engine._runner._backend.model
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", lambda batch: 1 / 0)
        with pytest.raises(BackendFailed, match="division by zero"):
            llama.generate([[50, 51]], GREEDY, use_tqdm=False)
    assert len(llama.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 12


@pytest.mark.parametrize("extra", [{}, {"frequency_penalty": 0.5}])
def test_greedy_answers_are_the_same_with_and_without_the_prefix_cache(checkpoint, extra):
    """Requests that share, wait for each other, evict each other's prefixes and come back for a second turn."""
    params = msgspec.structs.replace(GREEDY, **extra)
    common = make_prompts(9, 60)[2] + list(range(50, 90))
    prompts = [common[: 20 + 3 * i] + tail for i, tail in enumerate(make_prompts(12, 30))] + [common, common]
    options = OPTIONS | {"max_total_token_num": 700, "max_req_total_len": 300, "chunked_prefill_size": 24}

    def answers(**more):
        with LLM(checkpoint, **options, **more) as llm:
            first = [r.outputs[0].token_ids for r in llm.generate(prompts, params, use_tqdm=False)]
            turns = [p + a + [7, 8] for p, a in zip(prompts, first, strict=True)]
            again = [r.outputs[0].token_ids for r in llm.generate(turns, params, use_tqdm=False)]
            return first, again, llm._engine._scheduler.snapshot()

    *cached, state = answers()
    *plain, reference = answers(disable_dynamic_prompt_cache=True)
    assert cached == plain
    assert state.slots_cached > 0 == reference.slots_cached
    assert state.prompt_tokens < 0.7 * reference.prompt_tokens


def test_chat_renders_the_template_and_fills_what_room_there_is(llama):
    messages = [{"role": "user", "content": "Hello"}]
    (result,) = llama.chat(messages, GREEDY, use_tqdm=False)
    text = llama.tokenizer.apply_chat_template(messages)
    assert result.prompt_token_ids == llama.tokenizer.encode(text, add_special_tokens=False)
    two = llama.chat([messages, messages], GREEDY, use_tqdm=False)
    assert [r.outputs[0].token_ids for r in two] == [result.outputs[0].token_ids] * 2
    assert llama.chat_prompt(messages, continue_final_message=True) == result.prompt_token_ids[:-2]
    with pytest.raises(InvalidParameter, match="does not render tools"):
        llama.chat(messages, GREEDY, tools=[{"type": "function"}])


@pytest.mark.parametrize(
    "prompt,params,error,words",
    [
        ([], {}, InvalidParameter, "at least one token"),
        ([5, 384], {}, InvalidParameter, r"384 is not in \[0, 384\)"),
        ([-1], {}, InvalidParameter, "-1"),
        ([5], {"temperature": -1.0}, InvalidParameter, "temperature"),
        ([5], {"temperature": "hot"}, InvalidParameter, "temperature"),
        ([5], {"max_new_tokens": 1.5}, InvalidParameter, "max_new_tokens"),
        ([5], {"stop_sequences": [None]}, InvalidParameter, "stop_sequences"),
        ([5], {"logit_bias": {384: 1.0}}, InvalidParameter, "logit_bias"),
        ([5] * 1000, {"max_new_tokens": 100}, PromptTooLong, "1100.*1024"),
    ],
)
def test_bad_request_is_refused_before_anything_runs(llama, monkeypatch, prompt, params, error, words):
    ran = []
    monkeypatch.setattr(llama._engine._runner._backend, "submit", ran.append)
    with pytest.raises(error, match=words):
        llama.generate([[7, 8], prompt], [GREEDY, SamplingParams(**params)], use_tqdm=False)
    assert ran == []
    monkeypatch.undo()
    assert len(llama.generate([[7, 8]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 12


def test_wrong_options_and_folders_are_startup_errors(tmp_path):
    with pytest.raises(InvalidOption, match="max_tokens"):
        LLM(str(tmp_path), max_tokens=5)
    with pytest.raises(InvalidOption, match="--max_total_token_num must be at least 2"):
        LLM(str(tmp_path), max_total_token_num=1)
    with pytest.raises(InvalidModel):
        LLM(str(tmp_path / "nothing"))


def test_closed_engine_says_so(tmp_path):
    llm = LLM(str(make_checkpoint(tmp_path / "model")), **OPTIONS)
    llm.close()
    with pytest.raises(RuntimeError, match="closed"):
        llm.generate("x")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """Its ranks outlive the thread that made it."""
    path = make_checkpoint(tmp_path_factory.mktemp("ranks") / "model", "llama", num_key_value_heads=1)
    with ThreadPoolExecutor(1) as maker:
        making = maker.submit(LLM, str(path), tp=2, check_rounds=True, chunked_prefill_size=16, **OPTIONS)
    with making.result() as llm:
        yield llm


def test_two_ranks_give_the_answers_of_one(two_ranks):
    prompts = make_prompts(9)
    # Seeds with which no random number lies on the border between two tokens: sums of two ranks differ by a millionth.
    params = [GREEDY] * 4 + [SamplingParams(max_new_tokens=12, seed=10 + i, top_p=0.9) for i in range(5)]
    with LLM(two_ranks.model_dir, chunked_prefill_size=16, **OPTIONS) as one:
        expected = [r.outputs[0].token_ids for r in one.generate(prompts, params, use_tqdm=False)]
    assert len(two_ranks._engine._runner._processes) == 2
    for _ in range(2):  # again, with the prefix cache
        answers = two_ranks.generate(prompts, params, use_tqdm=False)
        assert [r.outputs[0].token_ids for r in answers] == expected


def test_an_interrupt_leaves_several_ranks_usable(two_ranks, monkeypatch):
    expected = two_ranks.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    runner = two_ranks._engine._runner
    original, calls = runner.take, []

    def take():
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt  # the round is under way, and its result will still come
        return original()

    monkeypatch.setattr(runner, "take", take)
    with pytest.raises(KeyboardInterrupt):
        two_ranks.generate([[1, 2, 3]], GREEDY, use_tqdm=False)
    monkeypatch.undo()
    assert two_ranks.generate([[50, 51]], GREEDY, use_tqdm=False)[0].outputs[0].token_ids == expected


def test_a_rank_that_dies_is_named_and_leaves_no_process(two_ranks):
    """The last test of these ranks: it ends them."""
    processes = two_ranks._engine._runner._processes
    processes[1].kill()
    with pytest.raises(BackendFailed, match="tensor parallel rank 1 has ended"):
        two_ranks.generate([[5, 6]], GREEDY, use_tqdm=False)
    two_ranks.close()
    assert all(process.returncode is not None for process in processes)


def test_a_kind_of_processor_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("LIGHTLLM_CPU_KIND", "mmx")
    with pytest.raises(InvalidOption, match="LIGHTLLM_CPU_KIND=mmx is no kind of processor"):
        LLM()


def test_a_tp_that_cannot_split_the_model_and_nodes_are_startup_errors(tmp_path):
    path = str(make_checkpoint(tmp_path / "model"))
    with pytest.raises(StartupError, match="num_heads 8 cannot be split over 3 ranks"):
        LLM(path, tp=3, **OPTIONS)
    with pytest.raises(InvalidOption, match="--nnodes needs a server"):
        LLM(path, tp=2, nnodes=2, nccl_host="127.0.0.1", **OPTIONS)


def test_a_text_with_a_token_that_the_model_lacks_is_refused_and_disturbs_nobody(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "m")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({**tokenizer["added_tokens"][-1], "id": 384, "content": "<|more|>"})
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with LLM(str(path), max_total_token_num=512) as llm:
        assert llm.tokenizer.encode("<|more|>")[-1] >= llm.tokenizer.vocab_size - 1
        with pytest.raises(InvalidParameter, match="the prompt holds token id"):
            llm.generate(["fine", "not <|more|>"], SamplingParams(max_new_tokens=2), use_tqdm=False)
        assert llm.generate("fine", SamplingParams(max_new_tokens=2), use_tqdm=False)
