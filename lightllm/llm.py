"""The engine without HTTP: `LLM(model_dir).generate(prompts, SamplingParams(...))`."""

from __future__ import annotations

import dataclasses
import gc
import os
import secrets
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
from tqdm import tqdm

from lightllm.config import ServerConfig, verify
from lightllm.constraints.check import check_constraint
from lightllm.errors import REQUEST_ERRORS, InvalidOption, InvalidParameter, PromptTooLong
from lightllm.foreign_options import advice
from lightllm.model_folder.generation import generation_defaults
from lightllm.model_folder.location import resolve_model_dir
from lightllm.ops.cpu_kind import library_variables
from lightllm.protocol.messages import Finish, PromptLogprobs, TextDeltas, TopLogprobs
from lightllm.sampling_params import MAX_SEED, SamplingParams
from lightllm.tokenizer import load_tokenizer
from lightllm.tokenizer.overruled import log_overruled

if TYPE_CHECKING:
    from lightllm.engine import Engine

Prompt = str | list[int]
Message = dict[str, Any]


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
    outputs: list[CompletionOutput]
    prompt_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    """Of each prompt token, None for the first; if `SamplingParams.prompt_logprobs` asked for them."""
    prompt_top_logprobs: list[TopLogprobs | None] = dataclasses.field(default_factory=list)


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
        log_overruled(self.model_dir, self.tokenizer, self.config.eos_id)
        self.default_sampling_params = SamplingParams(**generation_defaults(self.model_dir))
        """What `sampling_params=None` means: the model's generation_config.json."""
        for name, value in library_variables().items():
            os.environ.setdefault(name, value)
        from lightllm.engine import Engine  # here, because it loads torch

        self._engine: Engine | None = Engine(self.config, self.model_dir, self.tokenizer, show_bar)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Answers to all prompts, in their order. A prompt is a text or a list of token ids.

        Every prompt is checked before anything runs: raises `InvalidParameter` or `PromptTooLong`. Raises
        `BackendFailed` if the model cannot finish one.
        """
        several = _as_list(prompts)
        params = self._params(sampling_params, len(several))
        return self._generate(several, [self._encode(prompt) for prompt in several], params, use_tqdm)

    def chat(
        self,
        messages: list[Message] | Sequence[list[Message]],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
        **template_variables: Any,
    ) -> list[RequestOutput]:
        """Answers to one conversation or several, rendered with the model's chat template. Errors as `generate`.

        `template_variables`: what `Tokenizer.apply_chat_template` takes (`tools`, `add_generation_prompt`,
        `continue_final_message`), and variables of the template.

        Without `sampling_params` an answer may take the `default_max_tokens` option, as far as there is room.
        """
        conversations = [messages] if messages and isinstance(messages[0], dict) else list(messages)
        prompts = [self.chat_prompt(conversation, **template_variables) for conversation in conversations]  # type: ignore[arg-type]
        params = (
            [self._chat_params(len(prompt)) for prompt in prompts]
            if sampling_params is None
            else self._params(sampling_params, len(prompts))
        )
        return self._generate([None] * len(prompts), prompts, params, use_tqdm)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """The text of one answer, piece by piece. Leaving the loop, or an interrupt, aborts the request."""
        prompt_ids = self._encode(prompt)
        params = self._chat_params(len(prompt_ids)) if sampling_params is None else sampling_params
        engine = self._running_engine()
        (ids,) = engine.add([(prompt_ids, self._checked(params))])
        try:
            for deltas in engine.run():
                yield from filter(None, deltas.texts)
                yield from deltas.tails.values()
                _raise_failure(deltas.finished)
        finally:
            engine.abort(ids)

    def chat_prompt(self, messages: list[Message], **template_variables: Any) -> list[int]:
        """Token ids of a conversation; raises `InvalidParameter` if the template refuses it or there is none."""
        text = self.tokenizer.apply_chat_template(messages, **template_variables)
        return self.tokenizer.encode(text, add_special_tokens=False)

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

    def _generate(
        self,
        prompts: Sequence[Prompt | None],
        prompt_ids: list[list[int]],
        params: list[SamplingParams],
        use_tqdm: bool,
    ) -> list[RequestOutput]:
        engine = self._running_engine()
        ids = engine.add(list(zip(prompt_ids, params, strict=True)))
        requests: dict[int, RequestOutput] = {}
        answers: dict[int, CompletionOutput] = {}
        results = []
        for prompt, tokens, choices in zip(prompts, prompt_ids, ids, strict=True):
            outputs = [CompletionOutput(index) for index in range(len(choices))]
            results.append(RequestOutput(prompt if isinstance(prompt, str) else None, tokens, outputs))
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

    def _encode(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        try:
            prompt = msgspec.convert(_with_plain_integers(prompt), list[int])
        except msgspec.ValidationError as error:
            raise InvalidParameter(
                f"a prompt must be a text or a list of token ids: {error}", "prompt"
            ) from error
        vocab_size = self._running_engine().ready.vocab_size
        for token_id in prompt:
            if not 0 <= token_id < vocab_size:
                raise InvalidParameter(f"prompt token id {token_id} is not in [0, {vocab_size})", "prompt")
        return prompt

    def _running_engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("this LLM is closed")
        return self._engine


def _with_plain_integers(prompt: Any) -> Any:
    """Token ids as tokenizers of other libraries give them, numpy's integers too."""
    if not isinstance(prompt, Sequence | np.ndarray):
        return prompt
    return [int(token_id) if isinstance(token_id, np.integer) else token_id for token_id in prompt]


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


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt or several: a list of integers is one. Raises `InvalidParameter` for what is neither."""
    if not isinstance(prompts, str | Sequence):
        raise InvalidParameter(
            f"prompts must be texts or lists of token ids, got {type(prompts).__name__}", "prompt"
        )
    if isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int)):
        return [cast(Prompt, prompts)]
    return list(cast(Sequence[Prompt], prompts))


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
