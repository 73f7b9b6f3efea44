"""Fields of a request that no model of a body knows: what other servers, newer APIs and typing errors bring.

A field that would change the answer is refused by its name, unless it asks for what happens anyway; one that changes nothing
is accepted; one that is unknown is accepted too, and named once in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.httpserver.reading.sampling_fields import Api
from lightllm.sampling_params import PARAMETERS

_log = logging.getLogger(__name__)
_MAX_NAMES = 100
"""Unknown names that are told to the log, in the life of the process."""
_MAX_SHOWN = 64


class Refused(NamedTuple):
    instead: str = ""
    """What a client can do."""
    neutral: tuple[object, ...] = ()
    """Values that ask for what happens anyway, besides null, false and what is empty."""


_NO = Refused()

_SAMPLERS = {
    # vLLM, SGLang
    "use_beam_search": _NO, "length_penalty": Refused(neutral=(1,)), "early_stopping": _NO,
    "bad_words_token_ids": _NO, "logits_processors": _NO, "custom_logit_processor": _NO, "custom_params": _NO,
    "stop_regex": _NO, "lora_path": _NO, "lora_request": _NO, "vllm_xargs": _NO, "extra_args": _NO, "thinking_token_budget": _NO,
    "repetition_detection": _NO,
    # transformers, TGI
    "num_beams": Refused(neutral=(1,)), "no_repeat_ngram_size": Refused(neutral=(0,)), "penalty_alpha": Refused(neutral=(0,)),
    "epsilon_cutoff": Refused(neutral=(0,)), "eta_cutoff": Refused(neutral=(0,)), "encoder_repetition_penalty": Refused(neutral=(1,)),
    "num_return_sequences": Refused("n", (1,)), "max_length": _NO, "min_length": Refused(neutral=(0,)),
    "typical_p": Refused(neutral=(1,)), "watermark": _NO, "adapter_id": _NO, "top_n_tokens": Refused(neutral=(0,)),
    # llama.cpp, Ollama, text-generation-webui
    "mirostat": Refused(neutral=(0,)), "tfs_z": Refused(neutral=(1,)), "top_a": Refused(neutral=(0,)),
    "xtc_probability": Refused(neutral=(0,)), "dry_multiplier": Refused(neutral=(0,)), "dynatemp_range": Refused(neutral=(0,)),
    "repeat_penalty": Refused("repetition_penalty", (1,)), "num_predict": _NO, "n_predict": _NO, "options": _NO,
    "guidance_scale": Refused(neutral=(1,)), "negative_prompt": _NO,
}  # fmt: skip
"""What would choose other tokens."""


def _names_of_the_other(api: Api) -> dict[str, Refused]:
    """Names of sampling parameters that are not those of `api`, and its own for the same."""
    found: dict[str, Refused] = {}
    for name, spec in PARAMETERS.items():
        native, openai = (
            (name,) if own == "" else (own,) if own else () for own in (spec.native, spec.openai)
        )
        ours, others = (openai, native) if api == "openai" else ((*native, *spec.native_too), openai)
        if spec.foreign_name_refused:
            for other in (*others, *spec.elsewhere):
                found[other] = Refused(ours[0] if ours else "", spec.neutral)
        for own in ours:
            found.pop(own, None)
    return found


OPENAI_REFUSED = _SAMPLERS | _names_of_the_other("openai") | {
    # OpenAI
    "audio": _NO, "modalities": Refused(neutral=(["text"],)), "web_search_options": _NO,
    "verbosity": Refused(neutral=("medium",)),
    "reasoning": Refused("reasoning_effort"),
    "top_logprobs": Refused("logprobs", (0,)), "suffix": _NO, "echo": _NO,
    # vLLM
    "chat_template": Refused("--chat_template of the server"),
    "documents": Refused("the messages"), "mm_processor_kwargs": _NO, "prompt_embeds": _NO, "cache_salt": _NO,
    "kv_transfer_params": _NO, "guided_whitespace_pattern": _NO, "structural_tag": _NO,
    # SGLang
    "return_hidden_states": _NO, "session_params": _NO, "input_ids": Refused("prompt of /v1/completions"), "input_embeds": _NO,
    "image_data": _NO,
    # LightLLM's own API
    "grammar": Refused("guided_grammar"), "truncate": Refused("truncate_prompt_tokens"),
}  # fmt: skip
"""On /v1. Fields that only one of its two bodies has stand here for the other one."""

OPENAI_HARMLESS = frozenset(
    {"user", "store", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "prediction",
     "parallel_tool_calls", "request_id", "rid", "guided_decoding_backend", "separate_reasoning", "stream_reasoning",
     "include_reasoning", "data_parallel_rank", "cache_prompt", "id_slot", "keep_alive", "detokenize"}
)  # fmt: skip
"""`prediction` only makes OpenAI faster; a completion has no calls and no reasoning."""

MESSAGES_REFUSED = OPENAI_REFUSED | {
    # Anthropic
    "mcp_servers": _NO, "container": _NO,
    # OpenAI
    "response_format": Refused("output_config"), "logprobs": _NO, "reasoning_effort": Refused("output_config"),
    "max_completion_tokens": Refused("max_tokens"),
    # vLLM, SGLang
    "regex": Refused("guided_regex"), "ebnf": Refused("guided_grammar"), "json_schema": Refused("guided_json"),
    "structured_outputs": Refused("guided_json, guided_grammar or guided_regex"),
    "guided_choice": Refused("guided_grammar"), "bad_words": _NO, "prompt_logprobs": _NO, "truncate_prompt_tokens": _NO,
}  # fmt: skip
"""On /v1/messages."""

MESSAGES_HARMLESS = OPENAI_HARMLESS | {
    "cache_control", "context_management", "speed", "inference_geo", "user_profile_id", "workspace_id", "diagnostics", "anthropic_version", "betas",
}  # fmt: skip
"""Of `context_management` everything that would be cleared from the messages stays in them; who has no beta says so in a header."""

OLLAMA_REFUSED = {
    "template": Refused("raw"), "context": Refused("messages of /api/chat"), "logprobs": _NO, "top_logprobs": Refused(neutral=(0,)),
    "width": Refused(neutral=(0,)), "height": Refused(neutral=(0,)), "steps": Refused(neutral=(0,)),
}  # fmt: skip
"""Of /api, beside `options`."""
OLLAMA_HARMLESS = frozenset({"keep_alive", "truncate", "shift"})
OLLAMA_OPTIONS_REFUSED = _SAMPLERS | {"repeat_last_n": Refused(neutral=(-1,)), "penalize_newline": _NO}
"""In `options`: a penalty counts all that was said."""
OLLAMA_OPTIONS_HARMLESS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv", "logits_all",
     "vocab_only", "use_mmap", "use_mlock", "embedding_only", "mirostat_tau", "mirostat_eta"}
)  # fmt: skip
"""Of the machine, and of what is refused."""

NATIVE_REFUSED = _SAMPLERS | _names_of_the_other("native") | {
    # TGI
    "decoder_input_details": _NO,
    # OpenAI, vLLM, SGLang
    "logprobs": Refused("return_details"), "top_logprobs": Refused("return_details"),
    "echo": _NO, "suffix": _NO,
    "response_format": Refused("guided_json"), "guided_choice": Refused("guided_grammar"),
    "structured_outputs": Refused("guided_json, guided_grammar or regular_constraint"),
    "no_stop_trim": Refused("include_stop_str_in_output"), "truncate_prompt_tokens": Refused("truncate"),
    # LightLLM's, between its own processes
    "move_kv_to_decode_node": _NO,
}  # fmt: skip
"""In `parameters` of /generate."""

NATIVE_BESIDE = _SAMPLERS | {
    "sampling_params": Refused("parameters"), "return_logprob": Refused("return_details in parameters"),
    "input_ids": Refused("inputs"), "input_embeds": _NO, "image_data": _NO,
    "max_tokens": Refused("max_new_tokens in parameters"),
}  # fmt: skip
"""Beside `inputs` of /generate."""

NATIVE_HARMLESS = frozenset(
    {
        "image_max_patch_num",
        "suggested_dp_index",
        "group_request_id",
        "use_cache",
        "wait_for_model",
        "user",
        "disable_prompt_cache",
    }
)


class UnknownNames:
    """Those that the log has heard of."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def tell(self, name: str, where: str) -> None:
        name = name[:_MAX_SHOWN]
        if name in self._told or len(self._told) >= _MAX_NAMES:
            return
        self._told.add(name)
        _log.warning("%s: the field %r is not known here and has no effect", where, name)


_unknown_names = UnknownNames()


def check(
    body: object,
    others: Mapping[str, Any] | None,
    refused: Mapping[str, Refused],
    harmless: frozenset[str],
    where: str,
) -> None:
    """`others`: the fields that the model of `body` does not have. Raises `InvalidParameter` for the first that is refused;
    one that says the same as the field to use instead is not."""
    for name, value in (others or {}).items():
        entry = refused.get(name)
        if entry is not None:
            if not _is_neutral(value, entry.neutral) and value != getattr(body, entry.instead, None):
                instead = f": use {entry.instead}" if entry.instead else ""
                raise InvalidParameter(f"{name} is not supported{instead}", param=name)
        elif name not in harmless:
            _unknown_names.tell(name, where)


def _is_neutral(value: object, neutral: tuple[object, ...]) -> bool:
    if value is None or isinstance(value, bool):
        return not value
    return value in ("", [], {}) or value in neutral
