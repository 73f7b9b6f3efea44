"""The tables: how each family of models writes tool calls."""

from __future__ import annotations

import dataclasses

from lightllm.parsers.family_states import json_call, json_family, parameters
from lightllm.parsers.table import Family, Header, State, To, Written, closes, done, keeps, opens, to

HERMES = Family(
    "hermes", ("qwen", "qwen25", "qwen2_5", "qwen3", "granite4"), "Hermes, Qwen 2.5, Qwen 3, Granite 4",
    json_family(("<tool_call>",), ("</tool_call>",)),
    Written('<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", "\n"),
    marks=('<tool_call>\0"arguments"', "<tool_call>\0'arguments'", '<tool_call>\0\\"arguments\\"'), tokens=("<tool_call>", "</tool_call>"),
)  # fmt: skip

_QWEN3_CODER = parameters("<tool_call>", "<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "</tool_call>", True)  # fmt: skip
QWEN3_CODER = Family(
    "qwen3_coder", ("qwen3_xml", "qwen3_5", "nemotron_v3", "nano_v3"), "Qwen3-Coder, Qwen 3.5 and later, Nemotron 3",
    _QWEN3_CODER | {
        # the marker around the function is sometimes forgotten
        name: State("content", {"<tool_call>": to("marked"), "<function=": to("name")}) for name in ("start", "content")
    },
    Written("<tool_call>\n<function=", ">\n", "</function>\n</tool_call>", "\n", arguments="parameters",
            parameter=("<parameter=", ">\n", "\n</parameter>\n")),
    marks=("<function=\0<parameter=\0<tool_call>",),
)  # fmt: skip

SEED_OSS = Family(
    "seed_oss", (), "Seed-OSS",
    parameters("<seed:tool_call>", "<function=", ">", "<parameter=", ">", "</parameter>", "</function>", "</seed:tool_call>"),
    Written("<seed:tool_call>\n<function=", ">\n", "</function>\n</seed:tool_call>", "\n", arguments="parameters",
            parameter=("<parameter=", ">", "</parameter>\n")),
    marks=("<seed:tool_call>", "seed:tool_call"),
)  # fmt: skip

_LLAMA3_START = State("gap", {"{": to("call"), "<|python_tag|>": to("start")}, "content")
LLAMA3_JSON = Family(
    "llama3_json", ("llama3", "llama4_json"), "Llama 3.1, 3.2, 3.3",
    {
        "start": _LLAMA3_START,
        "content": State("content", {"<|python_tag|>": to("start")}),
        "after": State("gap", {";": to("start"), ",": to("start"), "<|python_tag|>": to("start")}, "content"),
        **json_call("after", strict=True),
    },
    Written('{"name": "', '", "parameters": ', "}", "; "),
    known_names=True,
    marks=('"parameters": ', '\\"parameters\\": ', "<|python_tag|>"),
    tokens=("<|python_tag|>", "<|eom_id|>"),
)  # fmt: skip

_PYTHON_CALLS = {
    "list": State("name", {"(": to("arguments")}),
    "arguments": State("python", then=To("after_call")),
}
PYTHONIC = Family(
    "pythonic", ("llama4_pythonic",), "Llama 3.2 1B and 3B, Llama 4, ToolACE",
    {
        "start": State("gap", {"[": to("list"), "<|python_start|>": to("start")}, "content"),
        "content": State("content", {"<|python_start|>": to("start")}),
        **_PYTHON_CALLS,
        "after_call": State("gap", {",": to("list"), "]": done("after")}, "content"),
        "after": State("gap", {"<|python_end|>": to("content")}, "content"),
    },
    Written("", "(", ")", ", ", "[", "]", arguments="python"),
    known_names=True, name_pattern=r"(?P<name>[\w.-]+)",
    marks=("[func_name1(", "func_name1(params_name1=", "<|python_start|>"), tokens=("<|python_start|>", "<|python_end|>"),
)  # fmt: skip

LFM2 = Family(
    "lfm2", (), "LFM2",
    {
        "start": State("content", {"<|tool_call_start|>": to("marked")}),
        "content": State("content", {"<|tool_call_start|>": to("marked")}),
        "marked": State("gap", {"[": to("list")}),
        **_PYTHON_CALLS,
        "after_call": State("gap", {",": to("list"), "]": done("after")}, "content"),
        "after": State("gap", {"<|tool_call_end|>": to("content")}, "content"),
    },
    Written("", "(", ")", ", ", "<|tool_call_start|>[", "]<|tool_call_end|>", arguments="python"),
    name_pattern=r"(?P<name>[\w.-]+)", marks=("<|tool_call_start|>",), tokens=("<|tool_call_start|>", "<|tool_call_end|>"),
)  # fmt: skip

OLMO3 = Family(
    "olmo3", (), "OLMo 3",
    {
        "start": State("content", {"<function_calls>": to("list")}),
        "content": State("content", {"<function_calls>": to("list")}),
        **_PYTHON_CALLS,
        "list": State("name", {"(": to("arguments"), "</function_calls>": to("content")}),
        "after_call": State("gap", {"</function_calls>": to("content")}, "list"),
    },
    Written("", "(", ")", "\n", "<function_calls>", "</function_calls>", arguments="python"),
    name_pattern=r"(?P<name>[\w.-]+)", marks=("<function_calls>",),
)  # fmt: skip

_MISTRAL_NEXT = {"[TOOL_CALLS]": to("marked")}
MISTRAL = Family(
    "mistral", (), "Mistral up to tokenizer v7; reads both forms",
    {
        "start": State("content", _MISTRAL_NEXT),
        "content": State("content", _MISTRAL_NEXT),
        "marked": State("gap", {"[": to("list"), "{": to("call")}, "named"),
        "list": State("gap", {"{": to("call"), "]": done("after")}),
        "list_after": State("gap", {",": to("list"), "]": done("after"), **_MISTRAL_NEXT}, "content"),
        **json_call("list_after"),
        "named": State("name", {"[ARGS]": opens("direct"), "[CALL_ID]": to("named_id"), "{": To("direct", ("open", "keep"))}),
        "named_id": State("call_id", {"[ARGS]": opens("direct")}),
        "direct": State("json", then=closes("after")),
        "after": State("gap", _MISTRAL_NEXT, "content"),
    },
    Written('{"name": "', '", "arguments": ', "}", ", ", "[TOOL_CALLS][", "]"),
    id_letters=9, marks=("[TOOL_CALLS]", "TOOL_CALLS"), tokens=("[TOOL_CALLS]",),
)  # fmt: skip
MISTRAL_V11 = dataclasses.replace(
    MISTRAL, name="mistral_v11", names=(), models="the same from tokenizer v11 on",
    written=Written("[TOOL_CALLS]", "[ARGS]", ""), marks=("[ARGS]",), tokens=("[TOOL_CALLS]", "[ARGS]"),
)  # fmt: skip

_DEEPSEEK_CONTENT = State(
    "content", {"<｜tool▁calls▁begin｜>": to("section"), "<｜tool▁call▁begin｜>": to("kind")}
)
_DEEPSEEK_SECTION = State(
    "gap", {"<｜tool▁call▁begin｜>": to("kind"), "<｜tool▁calls▁end｜>": to("content")}, "content"
)
_DEEPSEEK = {"start": _DEEPSEEK_CONTENT, "content": _DEEPSEEK_CONTENT, "section": _DEEPSEEK_SECTION}
DEEPSEEK_V3 = Family(
    "deepseek_v3", ("deepseekv3",), "DeepSeek V3, R1-0528",
    _DEEPSEEK | {
        "section": State("gap", _DEEPSEEK_SECTION.exits),
        "next": _DEEPSEEK_SECTION,
        "kind": State("skip", {"<｜tool▁sep｜>": to("name")}),
        "name": State("name", {"\n```json": opens("arguments")}),
        "arguments": State("raw", {"```<｜tool▁call▁end｜>": closes("next"), "<｜tool▁call▁end｜>": closes("next")}),
    },
    Written("<｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n", "\n```<｜tool▁call▁end｜>", "\n",
            "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    marks=("<｜tool▁sep｜>\0```json",),
)  # fmt: skip

DEEPSEEK_V31 = Family(
    "deepseek_v31", ("deepseekv31",), "DeepSeek V3.1",
    _DEEPSEEK | {
        "section": State("gap", _DEEPSEEK_SECTION.exits),
        "next": _DEEPSEEK_SECTION,
        "kind": State("name", {"<｜tool▁sep｜>": opens("arguments")}),
        "arguments": State("raw", {"<｜tool▁call▁end｜>": closes("next")}),
    },
    Written("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    marks=("<｜tool▁sep｜>",), tokens=("<｜tool▁calls▁begin｜>", "<｜tool▁sep｜>"),
)  # fmt: skip

_DSML = {f"<｜DSML｜{wrapper}>": to("marked") for wrapper in ("function_calls", "tool_calls")}
_DSML_END = {f"</｜DSML｜{wrapper}>": closes("content") for wrapper in ("function_calls", "tool_calls")}
DEEPSEEK_V32 = Family(
    "deepseek_v32", ("deepseekv32", "deepseek_v4"), "DeepSeek V3.2, V4",
    {
        "start": State("content", _DSML),
        "content": State("content", _DSML),
        "marked": State("gap", {'<｜DSML｜invoke name="': to("name")}),
        "name": State("name", {'">': opens("parameters")}),
        "parameters": State("skip", {
            '<｜DSML｜parameter name="': to("key"), "</｜DSML｜invoke>": closes("after"), **_DSML_END,
        }),
        "key": State("key", {'" string="true">': to("text"), '" string="false">': to("literal")}),
        "text": State("text", {"</｜DSML｜parameter>": to("parameters")}),
        "literal": State("literal", {"</｜DSML｜parameter>": to("parameters")}),
        "after": State("gap", {
            '<｜DSML｜invoke name="': to("name"), **{mark: to("content") for mark in _DSML_END},
        }, "content"),
    },
    Written('<｜DSML｜invoke name="', '">\n', "</｜DSML｜invoke>", "\n", "\n\n<｜DSML｜function_calls>\n",
            "\n</｜DSML｜function_calls>", arguments="parameters",
            parameter=('<｜DSML｜parameter name="', '" string="true">', "</｜DSML｜parameter>\n"),
            parameter_json=('<｜DSML｜parameter name="', '" string="false">', "</｜DSML｜parameter>\n")),
    marks=("｜DSML｜",), tokens=("｜DSML｜",),
)  # fmt: skip

_GLM = State("content", {"<tool_call>": to("name")})
_GLM_STATES = {
    "start": _GLM,
    "content": _GLM,
    "name": State("name", {"<arg_key>": opens("key"), "</tool_call>": To("content", ("open", "close"))}),
    "parameters": State("skip", {"<arg_key>": to("key"), "</tool_call>": closes("content")}),
    "key": State("key", {"</arg_key>": to("colon")}),
    "colon": State("skip", {"<arg_value>": to("value")}),
    "value": State("value", {"</arg_value>": to("parameters")}),
}
GLM45 = Family(
    "glm45", ("glm4_moe",), "GLM-4.5, GLM-4.6", _GLM_STATES,
    Written("<tool_call>", "\n", "</tool_call>", "\n", arguments="parameters",
            parameter=("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n")),
    name_pattern=r"(?P<name>[^\s<>{}]+)", marks=("<arg_key>\0</arg_key>\n", "<arg_key>\0</arg_key>\\n"),
)  # fmt: skip
GLM47 = Family(
    "glm47", ("glm47_moe",), "GLM-4.7 and later", _GLM_STATES,
    Written("<tool_call>", "", "</tool_call>", "", arguments="parameters",
            parameter=("<arg_key>", "</arg_key><arg_value>", "</arg_value>")),
    name_pattern=r"(?P<name>[^\s<>{}]+)", marks=("<arg_key>",), tokens=("<arg_key>", "<arg_value>"),
)  # fmt: skip

_KIMI = {"<|tool_calls_section_begin|>": to("section"), "<|tool_call_begin|>": to("name")}
_KIMI_SECTION = {"<|tool_call_begin|>": to("name"), "<|tool_calls_section_end|>": to("content")}
KIMI_K2 = Family(
    "kimi_k2", ("kimi",), "Kimi K2, K2-Thinking",
    {
        "start": State("content", _KIMI),
        "content": State("content", _KIMI),
        "section": State("gap", _KIMI_SECTION),
        "next": State("gap", _KIMI_SECTION, "content"),
        "name": State("name", {"<|tool_call_argument_begin|>": opens("arguments")}),
        "arguments": State("raw", {"<|tool_call_end|>": closes("next")}),
    },
    Written("<|tool_call_begin|>functions.", ":{number}<|tool_call_argument_begin|>", "<|tool_call_end|>", "",
            "<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", numbered=True),
    name_pattern=r"(?s)(?P<id>(?:functions\.)?(?P<name>.+?):\d+)",
    marks=("<|tool_calls_section_begin|>",), tokens=("<|tool_calls_section_begin|>",),
)  # fmt: skip

_HARMONY_ENDS = ("<|end|>", "<|return|>", "<|call|>")
_HARMONY_HEADER = State("header", {"<|message|>": to("content")})
HARMONY = Family(
    "harmony", ("openai", "gpt_oss", "openai_gptoss", "gptoss"), "gpt-oss",
    {
        "start": _HARMONY_HEADER,
        "header": _HARMONY_HEADER,
        "analysis": State("reasoning", {mark: done("between") for mark in _HARMONY_ENDS} | {"<|start|>": to("header")}),
        "final": State("content", {mark: done("between") for mark in _HARMONY_ENDS} | {"<|start|>": to("header")}),
        "call": State("raw", {mark: closes("between") for mark in _HARMONY_ENDS} | {"<|start|>": closes("header")}),
        "between": State("skip", {"<|start|>": to("header"), "<|channel|>": keeps("header")}),
        "content": State("content", {"<|start|>": to("header")}),
    },
    Written("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "", single=True),
    headers=(
        Header(r"to=functions\.(?P<name>[^\s<]+)", "call"),
        Header(r"<\|channel\|>\s*analysis", "analysis"),
        Header(r"(?s).*", "final"),
    ),
    marks=("<|channel|>\0<|message|>",), tokens=("<|channel|>", "<|constrain|>", "<|message|>"),
)  # fmt: skip

INTERNLM = Family(
    "internlm", ("internlm2",), "InternLM 2, 2.5, 3",
    json_family(("<|action_start|>",), ("<|action_end|>",), ("<|plugin|>",)),
    Written('<|action_start|><|plugin|>\n{"name": "', '", "parameters": ', "}<|action_end|>", "\n"),
    marks=("<|action_start|>",), tokens=("<|action_start|>", "<|plugin|>"),
)  # fmt: skip
GRANITE = Family(
    "granite", ("granite_20b_fc",), "Granite 3",
    json_family(("<|tool_call|>", "<tool_call>", "<function_call>"), ("</tool_call>",)),
    Written('{"name": "', '", "arguments": ', "}", ", ", "<|tool_call|>[", "]"),
    marks=("<|tool_call|>\0granite", "<|tool_call|>\0Granite", "<function_call>"), tokens=("<|tool_call|>", "<|start_of_role|>"),
)  # fmt: skip
PHI4 = Family(
    "phi4_mini_json", ("phi4", "phi4_mini"), "Phi-4-mini",
    json_family(("functools", "<|tool_call|>"), ("<|/tool_call|>",)),
    Written('{"name": "', '", "arguments": ', "}", ", ", "<|tool_call|>[", "]<|/tool_call|>"),
    marks=("<|tool_call|>", "<|tool|>", "functools"), tokens=("<|tool_call|>", "<|/tool_call|>"),
)  # fmt: skip
MINIMAX_M1 = Family(
    "minimax", ("minimax_m1",), "MiniMax-M1",
    json_family(("<tool_calls>",), ("</tool_calls>",)),
    Written('{"name": "', '", "arguments": ', "}", "\n", "<tool_calls>\n", "\n</tool_calls>"),
    marks=("<tool_calls>",),
)  # fmt: skip
JAMBA = Family(
    "jamba", (), "Jamba",
    MINIMAX_M1.states,
    Written('{"name": "', '", "arguments": ', "}", ", ", "<tool_calls>[", "]</tool_calls>"),
    marks=("<tool_calls>[\0</tool_calls>",), tokens=("<tool_calls>", "</tool_calls>"),
)  # fmt: skip
MINIMAX_M2 = Family(
    "minimax_m2", (), "MiniMax-M2",
    parameters("<minimax:tool_call>", '<invoke name="', '">', '<parameter name="', '">', "</parameter>", "</invoke>",
                "</minimax:tool_call>"),
    Written('<minimax:tool_call>\n<invoke name="', '">\n', "</invoke>\n</minimax:tool_call>", "\n", arguments="parameters",
            parameter=('<parameter name="', '">', "</parameter>\n")),
    marks=("<minimax:tool_call>", "minimax:tool_call"),
)  # fmt: skip
HUNYUAN = Family(
    "hunyuan_a13b", ("hunyuan",), "Hunyuan A13B",
    MINIMAX_M1.states,
    Written('{"name": "', '", "arguments": ', "}", ",\n", "<tool_calls>\n[\n", "\n]\n</tool_calls>"),
    marks=("<tool_calls>\0hunyuan", "<tool_calls>\0<answer>"),
)  # fmt: skip
COHERE = Family(
    "cohere_command", ("cohere_command3",), "Command R7B, Command A",
    json_family(("<|START_ACTION|>",), ("<|END_ACTION|>",), name="tool_name"),
    Written('{"tool_call_id": "{number}", "tool_name": "', '", "parameters": ', "}", ", ", "<|START_ACTION|>[", "]<|END_ACTION|>", numbered=True),
    marks=("<|START_ACTION|>",), tokens=("<|START_ACTION|>", "<|END_ACTION|>"),
)  # fmt: skip

COMMAND_R = Family(
    "command_r", ("command_r_plus",), "Command R, Command R+",
    json_family(("Action:",), ("```",), ("```json",), name="tool_name"),
    Written('{"tool_name": "', '", "parameters": ', "}", ", ", "Action: ```json\n[", "]\n```"),
    marks=("Write 'Action:' followed by", "Write \\'Action:\\' followed by"),
)  # fmt: skip
XLAM = Family(
    "xlam", (), "xLAM 2",
    {
        "start": State("gap", {"[": to("list"), **{mark: to("marked") for mark in ("```json", "<tool_call>")}}, "content"),
        "content": State("content", {mark: to("marked") for mark in ("```json", "<tool_call>", "[TOOL_CALLS]")}),
        "marked": State("gap", {"[": to("list")}),
        "list": State("gap", {"{": to("call"), "]": done("after"), "TOOL_CALLS]": to("marked")}),
        "item_after": State("gap", {",": to("list"), "]": done("after")}, "content"),
        "after": State("gap", {mark: to("content") for mark in ("```", "</tool_call>")}, "content"),
        **json_call("item_after"),
    },
    Written('{"name": "', '", "arguments": ', "}", ", ", "[", "]"),
    known_names=True, marks=("make calls in a single JSON array",),
)  # fmt: skip

_STEP3 = {"<｜tool_call_begin｜>": to("kind"), "<｜tool_calls_end｜>": to("content")}
_STEP3_CONTENT = State(
    "content", {"<｜tool_calls_begin｜>": to("section"), "<｜tool_call_begin｜>": to("kind")}
)
STEP3 = Family(
    "step3", (), "Step 3",
    {
        "start": _STEP3_CONTENT,
        "content": _STEP3_CONTENT,
        "section": State("gap", _STEP3),
        "next": State("gap", _STEP3, "content"),
        "kind": State("skip", {'<steptml:invoke name="': to("name")}),
        "name": State("name", {'">': opens("parameters")}),
        "parameters": State("skip", {
            '<steptml:parameter name="': to("key"), "</steptml:invoke>": closes("behind"), "<｜tool_call_end｜>": closes("next"),
            "<｜tool_calls_end｜>": closes("content"),
        }),
        "key": State("key", {'">': to("value")}),
        "value": State("value", {"</steptml:parameter>": to("parameters")}),
        "behind": State("gap", {"<｜tool_call_end｜>": to("next"), **_STEP3}, "content"),
    },
    Written('<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="', '">\n', "</steptml:invoke><｜tool_call_end｜>", "\n",
            "<｜tool_calls_begin｜>\n", "\n<｜tool_calls_end｜>", arguments="parameters",
            parameter=('<steptml:parameter name="', '">', "</steptml:parameter>\n")),
    marks=("steptml:",), tokens=("<｜tool_calls_begin｜>", "<｜tool_sep｜>"),
)  # fmt: skip


def _gemma(begin: str, end: str) -> dict[str, State]:
    content = State("content", {begin: to("marked")})
    return {
        "start": content,
        "content": content,
        "marked": State("gap", {"call:": to("name")}),
        "name": State("name", {"{": To("arguments", ("open", "keep"))}),
        "arguments": State("bare", then=closes("behind")),
        "behind": State("gap", {end: to("content")}, "content"),
    }


GEMMA4 = Family(
    "gemma4", (), "Gemma 4",
    _gemma("<|tool_call>", "<tool_call|>"),
    Written("<|tool_call>call:", "{", "}<tool_call|>", arguments="bare", parameter=("", ':<|"|>', '<|"|>'), parameter_json=("", ":", "")),
    text_quote='<|"|>', marks=("<|tool_call>",), tokens=("<|tool_call>", "<tool_call|>"),
)  # fmt: skip
FUNCTION_GEMMA = Family(
    "functiongemma", ("function_gemma",), "FunctionGemma",
    _gemma("<start_function_call>", "<end_function_call>"),
    Written("<start_function_call>call:", "{", "}<end_function_call>", arguments="bare",
            parameter=("", ":<escape>", "<escape>"), parameter_json=("", ":", "")),
    text_quote="<escape>", marks=("<start_function_call>",), tokens=("<start_function_call>", "<end_function_call>"),
)  # fmt: skip
JSON_CALLS = Family(
    "json", (), "any, where a call is demanded",
    {
        "start": State("gap", {"[": to("list"), "{": to("call")}, "content"),
        "content": State("content"),
        "list": State("gap", {"{": to("call"), "]": done("content")}),
        "after": State("gap", {",": to("list"), "]": done("content")}, "content"),
        **json_call("after"),
    },
    Written('{"name": "', '", "parameters": ', "}", ", ", "[", "]"),
)  # fmt: skip
"""For models that have no form of their own, or none that is known."""

FAMILIES: tuple[Family, ...] = (
    DEEPSEEK_V32, HARMONY, KIMI_K2, MINIMAX_M2, SEED_OSS, QWEN3_CODER, GLM45, GLM47, DEEPSEEK_V3, DEEPSEEK_V31, COHERE, COMMAND_R,
    INTERNLM, LFM2, GEMMA4, FUNCTION_GEMMA, STEP3, XLAM, GRANITE, PHI4, OLMO3, HUNYUAN, JAMBA, MINIMAX_M1, HERMES, MISTRAL_V11, MISTRAL,
    PYTHONIC, LLAMA3_JSON,
)  # fmt: skip
"""In the order in which they are looked for: what is rarer in other families' templates comes first."""
