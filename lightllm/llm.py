"""The engine without HTTP: `LLM(model_dir).generate(prompts, SamplingParams(...))`."""

from __future__ import annotations

import dataclasses
import gc
import os
import secrets
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
from tqdm import tqdm

from lightllm.config import ServerConfig
from lightllm.config_sources import verify
from lightllm.constraints.check import check_constraint
from lightllm.errors import REQUEST_ERRORS, InvalidOption, InvalidParameter, PromptTooLong
from lightllm.foreign_options import advice
from lightllm.model_folder.generation import generation_defaults
from lightllm.model_folder.location import resolve_model_dir
from lightllm.models.tasks import resolve_task
from lightllm.offline_prompts import AskedPrompt, Message, Prompt, PromptReader, prompts_of
from lightllm.offline_vectors import (
    ClassificationOutput,
    EmbeddingOutput,
    OfflineVectors,
    PoolingOutput,
    ScoringOutput,
)
from lightllm.ops.cpu_kind import library_variables
from lightllm.protocol.messages import Finish, PromptLogprobs, TextDeltas, TopLogprobs
from lightllm.sampling_params import MAX_SEED, SamplingParams
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.overruled import log_overruled

if TYPE_CHECKING:
    from lightllm.engine import Engine


@dataclasses.dataclass
class CompletionOutput:
    """One answer."""

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    """Generated tokens, the one that ended the answer included."""
    logprobs: list[float] = dataclasses.field(default_factory=list)
    """Log-probability of each token."""
    top_logprobs: list[TopLogprobs] = dataclasses.field(default_factory=list)
    """Alternatives at each position, if `SamplingParams.logprobs` asked for them."""
    finish_reason: str | None = None
    """"stop": EOS, stop token or stop string; "length": max_new_tokens."""

    @property
    def cumulative_logprob(self) -> float:
        return sum(self.logprobs)


@dataclasses.dataclass
class RequestOutput:
    """The answers to one prompt."""

    prompt: str | None
    """None if the prompt was given as token ids."""
    prompt_token_ids: list[int]
    """But for those of images."""
    outputs: list[CompletionOutput]
    prompt_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    """Of each prompt token, None for the first; if `SamplingParams.prompt_logprobs` asked for them."""
    prompt_top_logprobs: list[TopLogprobs | None] = dataclasses.field(default_factory=list)
    prompt_tokens: int = 0
    """With those of images."""
    image_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were in the prefix cache."""


class LLM:
    """A model, ready to generate. Takes the options of the server by name: `LLM("folder", data_type="fp32")`.

    model_dir: a folder, a Hugging Face hub id, or None for the embedded demo model. With `tp=2` or more the model is split
    over as many devices, each with a process. Raises `StartupError`s. Use it as a context manager, or `close` it, to give
    its memory back.
    """

    def __init__(
        self, model_dir: str | os.PathLike[str] | None = None, *, show_bar: bool = False, **options: Any
    ) -> None:
        self.config = _config_of({"model_dir": model_dir, **options})
        self.model_dir = resolve_model_dir(self.config.model_dir, lambda _: None)
        self.tokenizer = load_tokenizer(
            self.model_dir,
            trust_remote_code=self.config.trust_remote_code,
            chat_template=self.config.chat_template,
        )
        task = resolve_task(self.model_dir, self.config.task)
        self.config = dataclasses.replace(self.config, model_dir=self.model_dir, task=task)
        self._vectors = OfflineVectors(self.config, self.tokenizer) if self.config.pools else None
        log_overruled(self.model_dir, self.tokenizer, self.config.eos_id)
        self.default_sampling_params = SamplingParams(**generation_defaults(self.model_dir))
        """What `sampling_params=None` means: the model's generation_config.json."""
        for name, value in library_variables().items():
            os.environ.setdefault(name, value)
        from lightllm.engine import Engine  # here, because it loads torch

        engine = Engine(self.config, self.model_dir, self.tokenizer, show_bar)
        self._engine: Engine | None = engine
        layout = engine.images.layout if engine.images else None
        self._reader = PromptReader(self.tokenizer, engine.ready.vocab_size, layout)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order. A prompt is a text, a list of token ids, or either with images:
        `{"prompt": "USER: <image> What is it?", "multi_modal_data": {"image": image}}` (`offline_prompts`).

        Every prompt and image is checked before anything runs: raises `InvalidParameter` or `PromptTooLong`. Raises
        `BackendFailed` if the model cannot finish one.
        """
        self._checked_for_texts()
        several = prompts_of(prompts)
        fields = ["prompt"] if len(several) == 1 else [f"prompts.{index}" for index in range(len(several))]
        read = [self._reader.read(prompt, field) for prompt, field in zip(several, fields, strict=True)]
        params = self._params(sampling_params, len(several))
        return self._generate(self._with_images(read), params, use_tqdm)

    def chat(
        self,
        messages: list[Message] | Sequence[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answers to one conversation or several, rendered with the model's chat template. Errors as `generate`.

        A content may have images as parts: OpenAI's `{"type": "image_url", "image_url": {"url": ...}}`, or
        `{"type": "image", "image": image}` with a Pillow image, bytes, a path or a URL.

        `template_variables`: what `Tokenizer.apply_chat_template` takes (`tools`, `add_generation_prompt`,
        `continue_final_message`), and variables of the template.

        Without `sampling_params` an answer may take the `default_max_tokens` option, as far as there is room.
        """
        self._checked_for_texts()
        one = bool(messages) and isinstance(messages[0], dict)
        conversations = cast("list[list[Message]]", [messages] if one else list(messages))
        fields = ["messages"] if one else [f"messages.{index}" for index in range(len(conversations))]
        read = [
            self._reader.read_chat(conversation, field, **template_variables)
            for conversation, field in zip(conversations, fields, strict=True)
        ]
        asked = self._with_images(read)
        params = (
            [self._chat_params(prompt.tokens) for prompt in asked]
            if sampling_params is None
            else self._params(sampling_params, len(asked))
        )
        return self._generate(asked, params, use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """The text of one answer, piece by piece. Leaving the loop, or an interrupt, aborts the request."""
        self._checked_for_texts()
        (asked,) = self._with_images([self._reader.read(prompt)])
        params = self._chat_params(asked.tokens) if sampling_params is None else sampling_params
        engine = self._running_engine()
        (ids,) = engine.add([(asked, self._checked(params))])
        try:
            for deltas in engine.run():
                yield from filter(None, deltas.texts)
                yield from deltas.tails.values()
                _raise_failure(deltas.finished)
        finally:
            engine.abort(ids)

    def embed(
        self,
        prompts: Prompt | Sequence[Prompt],
        dimensions: int | None = None,
        normalize: bool | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingOutput[EmbeddingOutput]]:
        """A vector of each prompt, by an embedding model (docs/vectors.md), as vLLM gives it: `outputs.embedding`. dimensions,
        normalize: as of /v1/embeddings. Raises `InvalidParameter` or `PromptTooLong` before anything runs."""
        vectors, engine, read = self._for_vectors(prompts)
        return vectors.embed(engine, read, dimensions, normalize, use_tqdm)

    def classify(
        self, prompts: Prompt | Sequence[Prompt], use_tqdm: bool = True
    ) -> list[PoolingOutput[ClassificationOutput]]:
        """Labels of each prompt, by a model with a classification head: `outputs.probs`, `outputs.label`."""
        vectors, engine, read = self._for_vectors(prompts)
        return vectors.classify(engine, read, use_tqdm)

    def score(
        self,
        queries: str | Sequence[str],
        documents: str | Sequence[str],
        instruction: str | None = None,
        use_tqdm: bool = True,
    ) -> list[PoolingOutput[ScoringOutput]]:
        """How well documents fit a query, one for all or one for each, by any model for vectors: `outputs.score`."""
        vectors, engine, _ = self._for_vectors([])
        asked, found = ([side] if isinstance(side, str) else list(side) for side in (queries, documents))
        return vectors.score(engine, asked, found, instruction, use_tqdm)

    def chat_prompt(self, messages: list[Message], **template_variables: Any) -> list[int] | dict[str, Any]:
        """A conversation as a prompt for `stream` and `generate`: token ids, with its images if it has any. Raises
        `InvalidParameter` if the template refuses it or there is none."""
        read = self._reader.read_chat(messages, **template_variables)
        if not read.marked.sources:
            return list(read.marked.ids)
        return {"prompt_token_ids": read.marked.ids, "multi_modal_data": {"image": read.marked.sources}}

    @property
    def max_request_length(self) -> int:
        """Tokens that prompt and answer may have together."""
        return self._running_engine().scheduling.max_req_total_len

    def close(self) -> None:
        """Gives the model and its memory back. Nothing can be generated afterwards."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None
        self.tokenizer.close()
        gc.collect()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _with_images(self, prompts: list[AskedPrompt]) -> list[AskedPrompt]:
        """Loads the images of all prompts. Raises `InvalidImage`."""
        images = self._running_engine().images
        counted = images.count([prompt.marked for prompt in prompts]) if images else [None] * len(prompts)
        return [dataclasses.replace(prompt, images=own) for prompt, own in zip(prompts, counted, strict=True)]

    def _generate(
        self, prompts: list[AskedPrompt], params: list[SamplingParams], use_tqdm: bool
    ) -> list[RequestOutput]:
        engine = self._running_engine()
        ids = engine.add(list(zip(prompts, params, strict=True)))
        requests: dict[int, RequestOutput] = {}
        answers: dict[int, CompletionOutput] = {}
        results = []
        for prompt, choices in zip(prompts, ids, strict=True):
            outputs = [CompletionOutput(index) for index in range(len(choices))]
            results.append(_output(prompt, outputs))
            answers.update(zip(choices, outputs, strict=True))
            requests.update(dict.fromkeys(choices, results[-1]))
        try:
            with tqdm(total=len(answers), desc="Generating", unit="answer", disable=not use_tqdm) as bar:
                for deltas in engine.run():
                    _collect(deltas, answers, requests)
                    _raise_failure(deltas.finished)
                    bar.update(len(deltas.finished))
        finally:
            engine.abort(list(answers))
        return results

    def _params(
        self, given: SamplingParams | Sequence[SamplingParams] | None, count: int
    ) -> list[SamplingParams]:
        if given is None or isinstance(given, SamplingParams):
            params = [given or self.default_sampling_params] * count
        else:
            params = list(given) if isinstance(given, list | tuple) else [cast(SamplingParams, given)] * count
            if len(params) != count:
                raise InvalidParameter(
                    f"{len(params)} sampling_params for {count} prompts", "sampling_params"
                )
        return [self._checked(one) for one in params]

    def _chat_params(self, prompt_tokens: int) -> SamplingParams:
        longest = self.max_request_length
        if prompt_tokens >= longest:
            raise PromptTooLong(
                f"the conversation has {prompt_tokens} tokens, which leaves none for an answer: prompt and answer may "
                f"have {longest} together (max_req_total_len)",
                param="messages",
            )
        room = min(longest - prompt_tokens, self.config.default_max_tokens)
        return self._checked(msgspec.structs.replace(self.default_sampling_params, max_new_tokens=room))

    def _checked(self, params: SamplingParams) -> SamplingParams:
        """Verified, with a seed of its own if it has none."""
        params = _typed(params)
        params.verify(self._running_engine().ready.vocab_size)
        check_constraint(params, self.config.output_constraint_mode)
        if params.seed is not None:
            return params
        return msgspec.structs.replace(params, seed=secrets.randbelow(MAX_SEED))

    def _for_vectors(
        self, prompts: Prompt | Sequence[Prompt]
    ) -> tuple[OfflineVectors, Engine, list[AskedPrompt]]:
        if self._vectors is None:
            raise InvalidParameter('this model generates texts; with task="embed" it gives vectors')
        several = prompts_of(prompts) if prompts else []
        return self._vectors, self._running_engine(), [self._reader.read(prompt) for prompt in several]

    def _checked_for_texts(self) -> None:
        if self._vectors is not None:
            raise InvalidParameter(
                f'this model makes vectors ({self.config.serves}), and no texts, unless it is given task="generate"'
            )

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("this LLM is closed")
        return self._engine


def _config_of(options: dict[str, Any]) -> ServerConfig:
    """The options, checked as the command line would. Raises `InvalidOption`."""
    known = [field.name for field in dataclasses.fields(ServerConfig)]
    unknown = sorted(options.keys() - set(known))
    if unknown:
        answers = " ".join(filter(None, (advice(name, known, prefix="") for name in unknown)))
        raise InvalidOption(
            f"LLM has no option {', '.join(unknown)}.", answers or "See the options of the server."
        )
    plain = {
        name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in options.items()
    }
    try:
        config = msgspec.convert(plain, ServerConfig)
    except msgspec.ValidationError as error:
        raise InvalidOption(f"LLM: {error}.") from error
    return verify(config)


def _typed(params: SamplingParams) -> SamplingParams:
    """What a server's decoder sees to: every field of its type. One stop string may stand for a list of one. Raises
    `InvalidParameter`."""
    if not isinstance(params, SamplingParams):
        what = type(params).__name__
        raise InvalidParameter(f"sampling_params must be SamplingParams, got {what}", "sampling_params")
    if isinstance(params.stop_sequences, str):
        params = msgspec.structs.replace(params, stop_sequences=[params.stop_sequences])
    try:
        return msgspec.convert(msgspec.structs.asdict(params), SamplingParams)
    except msgspec.ValidationError as error:
        raise InvalidParameter(f"sampling_params: {error}", "sampling_params") from error


def _output(prompt: AskedPrompt, answers: list[CompletionOutput]) -> RequestOutput:
    images = prompt.images.tokens if prompt.images else 0
    return RequestOutput(
        prompt.text, prompt.text_ids, answers, prompt_tokens=prompt.tokens, image_tokens=images
    )


def _collect(
    deltas: TextDeltas, answers: dict[int, CompletionOutput], requests: dict[int, RequestOutput]
) -> None:
    for i, request_id in enumerate(deltas.request_ids):
        answer = answers[request_id]
        answer.token_ids.append(deltas.token_ids[i])
        answer.logprobs.append(deltas.logprobs[i])
        answer.text += deltas.texts[i]
        if i in deltas.top:
            answer.top_logprobs.append(deltas.top[i])
    for part in deltas.prompt_logprobs:
        if answers[part.request_id].index == 0:
            _collect_prompt(part, requests[part.request_id])
    for i, finish in enumerate(deltas.finished):
        answers[finish.request_id].text += deltas.tails.get(i, "")
        answers[finish.request_id].finish_reason = finish.reason
        if answers[finish.request_id].index == 0:
            requests[finish.request_id].cached_tokens = finish.cached_tokens


def _collect_prompt(part: PromptLogprobs, request: RequestOutput) -> None:
    if not request.prompt_logprobs:
        request.prompt_logprobs = [None]
        request.prompt_top_logprobs = [None] if part.top else []
    request.prompt_logprobs.extend(part.logprobs.tolist())
    request.prompt_top_logprobs.extend(part.top)


def _raise_failure(finished: list[Finish]) -> None:
    for finish in finished:
        if finish.reason == "error":
            raise REQUEST_ERRORS[finish.error_type](finish.error)
