"""Prompts with images through Scheduler and backend, their embeddings from transformers, against transformers' own answers."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import msgspec
import pytest
import torch
from support.recording_device import RecordingDevice
from support.rounds_to_end import Serving, Wanted
from support.scheduler_config import changed, scheduler_config
from support.vision_language import (
    FAMILIES,
    VOCAB,
    Image,
    VisionLanguage,
    ids_and_spans,
    make_vision_language,
)

from lightllm.backend.image_embeddings import ImageEmbeddings
from lightllm.backend.mode_backend import ModeBackend
from lightllm.config import ServerConfig
from lightllm.ipc.image_files import EmbeddingHeader, ImageFiles
from lightllm.sampling_params import SamplingParams

ROWS, SLOTS = 6, 700
LIMITS = scheduler_config(
    max_total_token_num=SLOTS, max_req_total_len=200, running_max_req_size=ROWS, batch_max_tokens=64,
    chunked_prefill_size=37, max_waiting_requests=100, eos_token_ids=[2], worth_waiting=2,
)  # fmt: skip
SHORT = SamplingParams(temperature=0.0, max_new_tokens=8, ignore_eos=True).verify()


class Embeddings:
    """Files of the image cache; counts what is read."""

    def __init__(self, folder: Path) -> None:
        self._files = ImageFiles(folder)
        self._source = ImageEmbeddings(folder)
        self.reads = 0

    def write(self, item_id: int, embedding: torch.Tensor) -> None:
        header = EmbeddingHeader("key", 0, len(embedding), "float32", list(embedding.shape))
        self._files.write_embedding(item_id, header, embedding.contiguous().numpy().tobytes())

    def remove(self, item_id: int) -> None:
        self._files.remove(item_id)

    def read(self, item_id: int) -> torch.Tensor:
        self.reads += 1
        return self._source.read(item_id)


@dataclasses.dataclass
class Case:
    config: ServerConfig
    reference: VisionLanguage
    backend: ModeBackend
    embeddings: Embeddings
    cat: Image
    dog: Image
    new_tokens: int

    def wanted(self, prompt: list[int | Image], params: SamplingParams | None = None) -> Wanted:
        params = params or msgspec.structs.replace(SHORT, max_new_tokens=self.new_tokens)
        ids, spans = ids_and_spans(prompt)
        uncut = self.backend.model.config.bidirectional_images
        return Wanted(ids, params, images=spans, uncut=uncut)

    @functools.cached_property
    def expected(self) -> list[list[int]]:
        return [self.reference.greedy(prompt, self.new_tokens) for prompt in self.prompts()]

    def prompts(self) -> list[list[int | Image]]:
        """Images between texts, at the start, one twice, a text alone. None ends with an image: transformers' `generate` would
        go on from the last position of each axis, published prompts end otherwise."""
        text = [(37 * i + 11) % 370 + 6 for i in range(60)]
        return [
            [*text[:20], self.cat, *text[20:31], self.dog, *text[31:38]],
            [self.dog, *text[:5]],
            [*text[:20], self.cat, *text[40:44], self.cat, 9],
            [*text[3:60], self.dog, 3, self.cat, 4],
            text[:45],
        ]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((name, tokens), marks=[pytest.mark.slow] if tokens > 24 else [], id=f"{name}-{tokens}")
        for name in FAMILIES
        for tokens in (24, 48)
        if name != "qwen2_5_vl"
    ],
)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The language model of Qwen2.5-VL is that of Qwen2-VL."""
    family, new_tokens = request.param
    reference = make_vision_language(tmp_path_factory.mktemp("vl") / "model", family)
    cat, dog = reference.image(1, 3, 5), reference.image(2, 7, 4)
    embeddings = Embeddings(tmp_path_factory.mktemp("images"))
    for image in (cat, dog):
        embeddings.write(image.item_id, image.embedding)
    config = ServerConfig(
        model_dir=str(reference.path), data_type="fp32", device="cpu", max_total_token_num=SLOTS,
        running_max_req_size=ROWS, cpu_threads=1, max_req_total_len=200,
    )  # fmt: skip
    backend = ModeBackend(config, 0, 1, embeddings=embeddings)
    backend.init_model()
    return Case(config, reference, backend, embeddings, cat, dog, new_tokens)


def test_greedy_tokens_equal_transformers_whole_and_in_chunks_together_and_from_the_prefix_cache(
    case: Case,
) -> None:
    expected = case.expected
    assert len({tuple(tokens) for tokens in expected}) == len(expected)
    serving = Serving(case.backend, LIMITS)
    assert (
        serving.run([case.wanted(prompt) for prompt in case.prompts()]) == expected
    )  # together, a cold cache
    for prompt, tokens in zip(case.prompts(), expected, strict=True):  # alone, a warm one
        assert serving.run([case.wanted(prompt, SHORT)]) == [tokens[:8]]
    assert not serving.failures and serving.scheduler.snapshot().slots_used == 0
    whole = Serving(case.backend, changed(LIMITS, batch_max_tokens=128, chunked_prefill_size=128))
    for prompt, tokens in zip(case.prompts(), expected, strict=True):
        assert whole.run([case.wanted(prompt, SHORT)]) == [tokens[:8]]


def test_requests_with_images_go_on_where_a_scheduler_that_was_lost_had_left_them(case: Case) -> None:
    serving = Serving(case.backend, LIMITS)
    requests = [case.wanted(prompt) for prompt in case.prompts()[:3]]
    assert serving.run(requests, restarts=[2, 20]) == case.expected[:3]


def test_an_image_in_the_prefix_cache_is_not_read_again_and_other_images_do_not_hit_it(case: Case) -> None:
    first, second = [*range(20, 29), case.cat, 9], [*range(20, 29), case.cat, 8, 7]
    other = [*range(20, 29), case.dog, 9]
    serving = Serving(case.backend, LIMITS)
    serving.run([case.wanted(first, SHORT)])
    before = case.embeddings.reads
    tokens = serving.run([case.wanted(second, SHORT)])
    assert case.embeddings.reads == before
    assert serving.finished[0].cached_tokens == 9 + len(case.cat.ids)
    assert tokens == [case.reference.greedy(second, 8)]
    assert serving.run([case.wanted(other, SHORT)]) == [case.reference.greedy(other, 8)]
    assert serving.finished[0].cached_tokens == 9 and case.embeddings.reads > before


def test_an_image_whose_embedding_is_missing_or_of_another_shape_ends_its_request_alone(case: Case) -> None:
    neighbours = [case.wanted(prompt, SHORT) for prompt in case.prompts()[:3]]
    lost = dataclasses.replace(case.cat, item_id=3)
    broken = case.wanted([*range(30, 50), lost, *range(50, 90)])  # in two chunks
    again = [*range(30, 50), lost, 5]
    expected = case.reference.greedy(again, 8)
    for wrong in (None, case.cat.embedding[:-1], case.cat.embedding[:, :-1]):
        case.embeddings.remove(3)
        if wrong is not None:
            case.embeddings.write(3, wrong)
        serving = Serving(case.backend, LIMITS)
        tokens = serving.run([*neighbours, broken])
        assert tokens[:3] == [tokens[:8] for tokens in case.expected[:3]] and not serving.failures
        finish = serving.finished[3]
        assert finish.reason == "error" and "embedding of an image" in finish.error
        assert serving.scheduler.snapshot().slots_used == 0
        case.embeddings.write(3, case.cat.embedding)
        assert serving.run([case.wanted(again, SHORT)]) == [expected]  # nothing wrong was kept


def test_images_with_captured_graphs_and_a_round_in_flight_behind_the_one_that_lacks_an_image(
    case: Case,
) -> None:
    device = RecordingDevice(late=True)
    backend = ModeBackend(
        case.config, 0, 1, open_device=lambda name, index: device, embeddings=case.embeddings
    )
    backend.init_model()
    device.under_way.clear()
    lost = dataclasses.replace(case.cat, item_id=4)
    broken = case.wanted([*range(30, 50), lost, *range(50, 120)])
    serving = Serving(backend, LIMITS, late=device.deliver)
    tokens = serving.run([broken, *map(case.wanted, case.prompts())])
    assert tokens[1:] == case.expected and not serving.failures and device.replays > case.new_tokens
    assert serving.finished[0].reason == "error" and "embedding of an image" in serving.finished[0].error


def test_penalties_ignore_image_tokens_and_prompt_log_probabilities_are_those_of_the_texts(
    case: Case,
) -> None:
    prompt = case.prompts()[0]
    ids, _ = ids_and_spans(prompt)
    params = SamplingParams(
        temperature=0.0, max_new_tokens=12, ignore_eos=True, prompt_logprobs=0, repetition_penalty=1.4,
        repetition_counts_prompt=True, frequency_penalty=0.5, input_penalty=True,
    ).verify()  # fmt: skip
    seen: list[float] = []
    serving = Serving(case.backend, LIMITS)
    record = serving._record

    def keep(tokens):
        for part in tokens.prompt_logprobs if tokens else ():
            seen.extend(part.logprobs.tolist())
        record(tokens)

    serving._record = keep
    (tokens,) = serving.run([case.wanted(prompt, params)])
    assert len(tokens) == 12 and not serving.failures
    logits = case.reference.logits(prompt).log_softmax(-1)
    texts = [place for place in range(1, len(ids)) if ids[place] < VOCAB]
    expected = torch.stack([logits[place - 1, ids[place]] for place in texts])
    torch.testing.assert_close(torch.tensor(seen)[torch.tensor(texts) - 1], expected, rtol=1e-3, atol=2e-3)
    assert len(seen) == len(ids) - 1


def test_an_id_outside_the_vocabulary_that_is_in_no_image_is_refused(case: Case) -> None:
    request = case.wanted([*range(20, 29), case.cat, 9])
    serving = Serving(case.backend, LIMITS)
    serving.run([dataclasses.replace(request, images=[])])
    assert serving.finished[0].reason == "error" and "outside the vocabulary" in serving.failures[0]


def test_a_chunk_that_ends_inside_an_image_is_an_error_where_its_tokens_see_each_other(case: Case) -> None:
    request = dataclasses.replace(case.wanted([*range(20, 50), case.cat, 9], SHORT), uncut=False)
    serving = Serving(case.backend, LIMITS)
    other = case.wanted(case.prompts()[4], SHORT)
    assert serving.run([request, other])[1] == case.expected[4][:8]
    reason = "error" if case.backend.model.config.bidirectional_images else "length"
    assert serving.finished[0].reason == reason and not serving.failures


def test_kv_memory_in_8_bits_reads_images_as_it_reads_texts(case: Case) -> None:
    """The same answers together in chunks, alone and from the prefix cache; they part from those over whole numbers late or never."""
    config = dataclasses.replace(case.config, llm_kv_type="int8kv")
    backend = ModeBackend(config, 0, 1, embeddings=case.embeddings)
    backend.init_model()
    assert all(layer.data.dtype == torch.int8 for layer in backend.memory.kv)
    requests = [case.wanted(prompt, SHORT) for prompt in case.prompts()]
    serving = Serving(backend, LIMITS)
    together = serving.run(requests)
    assert not serving.failures and serving.run(requests) == together
    alone = Serving(backend, changed(LIMITS, batch_max_tokens=128, chunked_prefill_size=128))
    assert [alone.run([request])[0] for request in requests] == together
    agreed = 0
    for tokens, expected in zip(together, case.expected, strict=True):
        same = [ours == theirs for ours, theirs in zip(tokens, expected)]
        agreed += (same + [False]).index(False)
    assert agreed >= 24, (together, case.expected)  # of 40
