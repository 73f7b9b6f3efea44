"""The mock backend under the real scheduler: its answers, its failures, and that it notices impossible rounds."""

import json
import re

import msgspec
import numpy as np
import pytest
from support.model_folder import VOCAB_SIZE, make_model_folder
from support.scheduler_config import scheduler_config

from lightllm.backend.mock import MockBackend
from lightllm.backend.mock_spec import MockSpec
from lightllm.backend.process import RoundRunner
from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.protocol.messages import AddRequest, Choice, Finish, ImageSpan
from lightllm.protocol.rounds import JoinRow, Resync, Round
from lightllm.router.scheduler import Scheduler
from lightllm.sampling_params import SamplingParams
from lightllm.tokenizer import load_tokenizer

EOS = 2


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    return str(make_model_folder(tmp_path_factory.mktemp("model")))


@pytest.fixture
def make_backend(model_dir):
    def make(spec: str = "", **options) -> MockBackend:
        backend = MockBackend(
            ServerConfig(model_dir=model_dir, mock_backend=spec, **options), lambda detail: None
        )
        backend.init_model()
        return backend

    return make


class Answers:
    """Runs requests to their end through a scheduler, two rounds in flight."""

    def __init__(
        self, backend: MockBackend, slots: int = 500, chunk: int = 16, decode_tokens: int = 1
    ) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, list[float]] = {}
        self.top: dict[int, list] = {}
        self.prompt_logprobs: dict[int, list] = {}
        self.finished: dict[int, Finish] = {}
        self.failures: list[str] = []
        self.rounds = 0
        self._runner = RoundRunner(backend)
        self._scheduler = Scheduler(
            scheduler_config(
                max_total_token_num=slots, max_req_total_len=200, running_max_req_size=16, batch_max_tokens=chunk + 16,
                chunked_prefill_size=chunk, max_waiting_requests=100, eos_token_ids=[EOS],
                decode_tokens=decode_tokens,
            )
        )  # fmt: skip

    def run(
        self,
        requests: dict[int, SamplingParams],
        prompt_len: int = 20,
        prompts: dict[int, list[int]] | None = None,
    ) -> "Answers":
        for request_id, params in requests.items():
            prompt = (prompts or {}).get(request_id, range(3, 3 + prompt_len))
            self._scheduler.add(AddRequest(np.array(prompt, np.int32), params, [Choice(request_id, 0)]))
        in_flight: list = []
        while self._scheduler.has_work or in_flight:
            while (round_ := self._scheduler.next_round()) is not None:
                in_flight.append(round_)
                self.rounds += 1
            if in_flight:
                self._runner.submit(in_flight.pop(0))
            result = self._runner.take_ready()
            if result is None:
                continue
            if result.failed:
                self.failures.append(result.failed)
            applied = self._scheduler.apply(result)
            self._take(applied.tokens)
            if applied.resync is not None:
                in_flight.append(Resync(applied.resync))  # behind the rounds that were sent before it
            self._scheduler.check_invariants()
        return self

    def _take(self, out) -> None:
        if out is None:
            return
        for i, (request_id, token, logprob) in enumerate(
            zip(out.request_ids, out.token_ids, out.logprobs, strict=True)
        ):
            self.tokens.setdefault(request_id, []).append(token)
            self.logprobs.setdefault(request_id, []).append(logprob)
            if i in out.top:
                self.top.setdefault(request_id, []).append(out.top[i])
        for part in out.prompt_logprobs:
            self.prompt_logprobs.setdefault(part.request_id, []).append(part)
        self.finished |= {finish.request_id: finish for finish in out.finished}


def params(**values) -> SamplingParams:
    return SamplingParams(**({"max_new_tokens": 30, "seed": 5} | values))


def test_the_same_request_gets_the_same_answer_alone_and_among_others(make_backend):
    alone = Answers(make_backend()).run({1: params(seed=77)})
    others = {i: params(seed=i, max_new_tokens=10 + i) for i in range(2, 14)}
    among = Answers(make_backend(), chunk=7).run(others | {1: params(seed=77)})
    assert not among.failures
    assert alone.tokens[1] == among.tokens[1]
    assert len(set(map(tuple, among.tokens.values()))) == 13
    assert EOS not in alone.tokens[1]


def test_failed_rounds_change_no_answer(make_backend):
    requests = {i: params(seed=i) for i in range(8)}
    good = Answers(make_backend()).run(requests)
    shaken = Answers(make_backend("fail_every=5")).run(requests)
    assert len(shaken.failures) > 5
    assert set(shaken.failures) == {f for f in shaken.failures if f.startswith("scripted failure of round")}
    assert good.tokens == shaken.tokens


def test_scarce_memory_leads_to_no_impossible_round(make_backend):
    backend = make_backend("slots=130,lengths=2:30")
    answers = Answers(backend, slots=130, chunk=8).run({i: params(seed=i) for i in range(40)})
    assert not answers.failures
    assert len(answers.finished) == 40


def test_eos_after_and_lengths_decide_where_an_answer_ends(make_backend):
    answers = Answers(make_backend("eos_after=4")).run({1: params(), 2: params(ignore_eos=True)})
    assert len(answers.tokens[1]) == 4 and answers.tokens[1][-1] == EOS
    assert answers.finished[1].reason == "stop"
    assert len(answers.tokens[2]) == 30 and answers.finished[2].reason == "length"
    lengths = Answers(make_backend("lengths=3:9")).run({i: params(seed=i) for i in range(16)})
    assert {len(tokens) for tokens in lengths.tokens.values()} <= set(range(3, 10))
    assert len({len(tokens) for tokens in lengths.tokens.values()}) > 2


def test_min_new_tokens_puts_off_eos_and_stop_tokens(make_backend):
    plain = Answers(make_backend()).run({1: params()}).tokens[1]
    stop = plain[3]
    stopped = Answers(make_backend()).run({1: params(stop_token_ids=[stop])})
    assert stopped.tokens[1] == plain[:4] and stopped.finished[1].reason == "stop"
    later = Answers(make_backend("eos_after=2")).run({1: params(min_new_tokens=9, stop_token_ids=[stop])})
    assert len(later.tokens[1]) == 9
    assert not {stop, EOS} & set(later.tokens[1][:8])


def test_text_is_answered_as_its_tokens_and_then_eos(make_backend, model_dir):
    text = "the quick brown fox, and = 5"
    answers = Answers(make_backend(f"step_ms=0,text={text}")).run({1: params(max_new_tokens=100)})
    assert load_tokenizer(model_dir).decode(answers.tokens[1]) == text
    assert answers.tokens[1][-1] == EOS


@pytest.mark.parametrize("decode_tokens", [1, 4])
def test_a_reply_is_chosen_by_what_stands_last_in_the_prompt(
    make_backend, model_dir, tmp_path, decode_tokens
):
    """Also where the text is in the prefix cache, or was generated."""
    tokenizer = load_tokenizer(model_dir)
    file = tmp_path / "replies.json"
    replies = [
        {"after": "the fox", "text": "call = 5"},
        {"after": "5 and", "text": "it is 5"},
        {"text": "what is it"},
    ]
    file.write_text(json.dumps(replies))
    texts = ["one", "the fox", "the fox of two", "the foxcall = 5 and", "5 and the fox", "5 and"]
    spec = f"round_tokens=1:{decode_tokens},replies={file}"
    answers = Answers(make_backend(spec), chunk=5, decode_tokens=decode_tokens)
    for number in range(2 * len(texts)):
        prompt = tokenizer.encode(texts[number % len(texts)])
        answers.run({number: params()}, prompts={number: prompt})
    assert not answers.failures
    said = [tokenizer.decode(answers.tokens[number]) for number in answers.tokens]
    assert said == 2 * ["what is it", "call = 5", "call = 5", "it is 5", "call = 5", "it is 5"]
    together = {number: tokenizer.encode(text) for number, text in enumerate(texts)}
    again = Answers(make_backend(spec), chunk=7, decode_tokens=decode_tokens)
    again.run({number: params() for number in together}, prompts=together)
    assert not again.failures and [tokenizer.decode(again.tokens[number]) for number in together] == said[:6]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '[{"text": ""}]', '[{"after": "x"}]', '[{"text": "x", "before": "y"}]', None]
)
def test_a_wrong_file_of_replies_is_an_option_error(tmp_path, content):
    file = tmp_path / "replies.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InvalidOption, match="--mock_backend: replies="):
        MockSpec.parse(f"replies={file}")


def test_cycle_gives_consecutive_ids(make_backend):
    tokens = Answers(make_backend("tokens=cycle")).run({1: params(max_new_tokens=5)}).tokens[1]
    assert tokens == list(range(tokens[0], tokens[0] + 5))


def test_logprobs_and_alternatives_come_as_asked(make_backend):
    answers = Answers(make_backend()).run(
        {1: params(logprobs=3, prompt_logprobs=2), 2: params()}, prompt_len=40
    )
    assert all(logprob < 0 for logprob in answers.logprobs[1])
    assert 2 not in answers.top and 2 not in answers.prompt_logprobs
    for token, logprob, top in zip(answers.tokens[1], answers.logprobs[1], answers.top[1], strict=True):
        assert len(top.token_ids) == len(set(top.token_ids)) == 3
        assert (top.token_ids[0], top.logprobs[0]) == (token, pytest.approx(logprob))
        assert top.logprobs == sorted(top.logprobs, reverse=True)
    covered = [
        p for part in answers.prompt_logprobs[1] for p in range(part.start, part.start + len(part.logprobs))
    ]
    assert covered == list(range(1, 40))


def test_a_step_takes_the_scripted_time(make_backend):
    backend = make_backend("step_ms=20,token_us=1000")
    result = backend.execute(prefill(0, row=0, slots=range(10)))
    assert 0.03 <= result.seconds < 2


def test_slots_and_vocabulary_come_from_spec_or_options_or_model(make_backend, model_dir):
    def ready(spec: str, **options):
        config = ServerConfig(model_dir=model_dir, mock_backend=spec, **options)
        return MockBackend(config, lambda detail: None).init_model()

    assert (ready("").max_total_token_num, ready("").vocab_size) == (1_000_000, VOCAB_SIZE)
    assert ready("", max_total_token_num=99).max_total_token_num == 99
    assert ready("slots=7,vocab_size=50").max_total_token_num == 7
    assert ready("slots=7,vocab_size=50").vocab_size == 50


# -- impossible rounds


def prefill(seq: int, row: int, slots, context: int = 0, joined: bool = False) -> Round:
    slots = np.array(slots, np.int32)
    n = len(slots)
    return Round(
        seq=seq, num_decode=0, rows=np.array([row], np.int32), q_len=np.array([n], np.int32),
        kv_len=np.array([context + n], np.int32), samples=np.ones(1, np.uint8), token_ids=np.full(n, 5, np.int32), slots=slots,
        joins=[] if joined else [JoinRow(row, n, SamplingParams(), seed=1, choice=0, end_token_ids=[EOS])],
    )  # fmt: skip


def decode(seq: int, row: int, slot: int, kv_len: int, **more) -> Round:
    one = np.ones(1, np.int32)
    return Round(
        seq=seq, num_decode=1, rows=one * row, q_len=one, kv_len=one * kv_len, samples=np.ones(1, np.uint8),
        token_ids=np.zeros(0, np.int32), slots=one * slot, **more,
    )  # fmt: skip


def change(round_: Round, **values) -> Round:
    return msgspec.structs.replace(round_, **values)


@pytest.mark.parametrize(("start", "wrong"), [(1, False), (2, True), (0, True)])
def test_ids_outside_the_vocabulary_are_those_of_images(make_backend, start, wrong):
    ids = np.array([5, 2**24, 2**24 + 1, 5], np.int32)
    round_ = change(prefill(0, 0, [0, 1, 2, 3]), token_ids=ids)
    joins = [msgspec.structs.replace(round_.joins[0], images=[ImageSpan(start, 2, item_id=7)])]
    result = make_backend("slots=500").execute(change(round_, joins=joins))
    assert ("token ids outside" in result.failed) == wrong


@pytest.mark.parametrize(
    ("round_", "error"),
    [
        (decode(5, 0, 50, 11), "expected round 1"),
        (decode(1, 0, 3, 11), "slot 3 is written while a row still reads it"),
        (decode(1, 0, 500, 11), r"slots outside \[0, 500\)"),
        (decode(1, 0, 50, 12), "10 tokens in context, 1 new ones do not make 12"),
        (decode(1, 1, 50, 11), "row 1 has not joined"),
        (prefill(1, 1, [50, 50]), "a slot is written twice"),
        (prefill(1, 1, [3]), "slot 3 is written"),
        (change(prefill(1, 1, [50]), token_ids=np.array([VOCAB_SIZE], np.int32)), "token ids outside"),
        (change(prefill(1, 1, [50]), token_ids=np.zeros(2, np.int32)), "2 token ids for 1 prefill tokens"),
        (change(decode(1, 0, 50, 11), samples=np.zeros(1, np.uint8)), "does not sample"),
        (change(decode(1, 0, 50, 11), slots=np.array([50, 51], np.int32)), "2 slots for 1 tokens"),
    ],
)  # fmt: skip
def test_an_impossible_round_fails_with_the_reason(make_backend, round_, error):
    backend = make_backend("slots=500")
    assert not backend.execute(prefill(0, 0, range(10))).failed
    assert re.search(error, backend.execute(round_).failed)


def test_a_slot_may_be_reused_in_the_round_in_which_its_row_leaves(make_backend):
    backend = make_backend("slots=500")
    assert not backend.execute(prefill(0, 0, range(10))).failed
    assert not backend.execute(change(prefill(1, 1, range(10)), leaves=[0])).failed
    assert "has not joined" in backend.execute(decode(2, 0, 50, 11)).failed


def test_a_decode_row_needs_a_sampled_token(make_backend):
    backend = make_backend("slots=500")
    assert not backend.execute(change(prefill(0, 0, range(10)), samples=np.zeros(1, np.uint8))).failed
    assert "without a sampled token" in backend.execute(decode(1, 0, 50, 11)).failed


def test_check_0_lets_impossible_rounds_pass(make_backend):
    backend = make_backend("slots=500,check=0")
    assert not backend.execute(prefill(0, 0, range(10))).failed
    assert not backend.execute(decode(7, 0, 3, 11)).failed


@pytest.mark.parametrize(
    "spec", ["speed=1", "step_ms", "step_ms=fast", "step_ms=-1", "lengths=5:2", "check=yes", "tokens=random", "=", "step_ms=nan"]
)  # fmt: skip
def test_a_wrong_spec_is_an_option_error(spec):
    with pytest.raises(InvalidOption, match="--mock_backend"):
        MockSpec.parse(spec)


def test_a_spec_is_read_as_written():
    spec = MockSpec.parse("step_ms=2, lengths=3:9,check=0,text=a,b=c")
    assert (spec.step_ms, spec.lengths, spec.check, spec.text) == (2.0, (3, 9), False, "a,b=c")
    assert MockSpec.parse("") == MockSpec()


def test_several_tokens_a_round_make_the_same_answers(make_backend):
    requests = {
        1: params(logprobs=3),
        2: params(seed=6, prompt_logprobs=1, max_new_tokens=1),
        3: params(seed=7, min_new_tokens=15, stop_token_ids=list(range(3, 60))),
        4: params(seed=8, max_new_tokens=29),
        5: params(seed=9, ignore_eos=True),
    }
    one = Answers(make_backend("eos_after=17")).run(requests)
    several = Answers(make_backend("eos_after=17,round_tokens=1:4"), decode_tokens=4).run(requests)
    assert not several.failures and several.rounds < one.rounds / 1.5
    for field in ("tokens", "logprobs", "top", "finished"):
        assert getattr(several, field) == getattr(one, field)
    assert len(several.tokens[1]) == 17 and len(several.tokens[5]) == 30
