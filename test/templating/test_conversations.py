"""Every message that is accepted reaches the prompt, whatever the template expects; others are refused by their index."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from support import chat_templates as published
from support.chat_templates import ASSISTANT, SYSTEM, TOOLS

from lightllm.errors import InvalidParameter
from lightllm.tokenizer.chat_template import ChatTemplates

USER = {"role": "user", "content": "Weather?"}
FRENCH = {"role": "developer", "content": "Reply in French"}
ARGUMENTS = '{"city": "Rome"}'
RESULT = {"role": "tool", "tool_call_id": "call00001", "content": "21 degrees"}
QWEN_LIKE = (
    "{%- for m in messages %}{%- if m.role == 'system' or m.role == 'user' %}{{- '<' + m.role + '>' + m.content }}"
    "{%- elif m.role == 'assistant' %}{{- '<assistant>' + m.content }}{%- for c in m.tool_calls or [] %}"
    "{{- '<call>' + c.function.name + (c.function.arguments | tojson) }}{%- endfor %}"
    "{%- elif m.role == 'tool' %}{{- '<result>' + m.content }}{%- endif %}{%- endfor %}"
)
NEMOTRON = "{{ messages[0].content if messages[0].role == 'system' }}{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}"
STRICT = (
    "{% for m in messages %}{% if m.role not in ('system', 'user', 'assistant', 'tool') %}{{ raise_exception('Unknown role') }}"
    "{% endif %}<{{ m.role }}>{{ m.content }}{% endfor %}"
)


@functools.cache
def templates(source: str) -> ChatTemplates:
    return ChatTemplates({"default": source})


def render(source: str, messages: list[Any], tools: Any = None, **options: Any) -> str:
    variables = options.pop("variables", {})
    begun = options.pop("add_generation_prompt", False)
    return templates(source).render(
        messages, tools, begun, {"bos_token": "", "eos_token": ""} | variables, **options
    )


def refusal(source: str, messages: list[Any], tools: Any = None, **options: Any) -> InvalidParameter:
    with pytest.raises(InvalidParameter) as refused:
        render(source, messages, tools, **options)
    return refused.value


def calls(content: Any = None, arguments: Any = ARGUMENTS, count: int = 1) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    made = [{"id": f"call0000{k}", "type": "function", "function": function} for k in range(1, count + 1)]
    return {"role": "assistant", "content": content, "tool_calls": made}


# -- roles


def test_neighbours_of_a_role_are_merged_where_the_template_wants_one_message() -> None:
    late = {"role": "system", "content": "Be kind."}
    assert "Be brief.\n\nBe kind.Weather?" in render(NEMOTRON, [SYSTEM, late, USER])
    assert "Be brief.\n\nReply in French" in render(published.GPT_OSS, [SYSTEM, FRENCH, USER])
    again = {"role": "user", "content": "And tomorrow?"}
    assert "[INST] Weather?\n\nAnd tomorrow? [/INST]" in render(published.LLAMA_2, [USER, again])
    assert render(QWEN_LIKE, [USER, again]) == "<user>Weather?<user>And tomorrow?"
    assert (
        "roles must alternate"
        in refusal(published.LLAMA_2, [USER, ASSISTANT, ASSISTANT | {"name": "x"}]).message
    )


@pytest.mark.parametrize(
    "source", [QWEN_LIKE, STRICT, published.DEEPSEEK_V31], ids=["left out", "refused", "v3.1"]
)
def test_developer_is_system_where_the_template_does_not_know_it(source):
    assert "<system>Reply in French" in render(source, [FRENCH, USER])
    assert render(source, [FRENCH, USER]) == render(source, [FRENCH | {"role": "system"}, USER])


@pytest.mark.parametrize("source", [published.CHATML, published.GPT_OSS], ids=["chatml", "gpt-oss"])
def test_developer_stays_where_the_template_renders_it(source):
    assert "developer" in render(source, [FRENCH, USER]) and "French" in render(source, [FRENCH, USER])


def test_a_functions_result_is_a_tools_where_the_template_does_not_know_it():
    called = {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ARGUMENTS}}
    result = {"role": "function", "name": "f", "content": "21 degrees"}
    assert render(QWEN_LIKE, [USER, called, result]) == (
        '<user>Weather?<assistant><call>f{"city": "Rome"}<result>21 degrees'
    )
    assert "21 degrees" in render(QWEN_LIKE, [USER, result])


@pytest.mark.parametrize(
    ("source", "messages", "index"),
    [
        (QWEN_LIKE, [{"role": "User", "content": "hi"}, USER], 0),
        (QWEN_LIKE, [USER, {"role": "critic", "content": "hi"}], 1),
        (published.GPT_OSS, [USER, ASSISTANT, SYSTEM, USER], 2),
        (NEMOTRON, [SYSTEM, USER, SYSTEM], 2),
        (NEMOTRON, [USER, FRENCH, {"role": "system", "content": "late"}], 2),
        ("{{ messages[-1].content }}", [USER, ASSISTANT, USER], 0),
        (published.DEEPSEEK_V3, [USER, {"role": "function", "content": "21"}, {"role": "ipython", "content": "x"}], 2),
    ],
)  # fmt: skip
def test_a_message_that_is_left_out_is_refused_by_its_index(source, messages, index):
    error = refusal(source, messages)
    assert error.message.startswith(
        f"messages.{index}: the model's chat template leaves out a message of role"
    )
    assert repr(messages[index]["role"]) in error.message and error.param == "messages"


@pytest.mark.parametrize("text", ["", "  ", None])
def test_a_message_without_text_may_leave_no_trace(text):
    assert render(QWEN_LIKE, [USER, {"role": "critic", "content": text}]) == "<user>Weather?"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("{% for m in messages %}{{ m.content | trim | upper }}{% endfor %}", "A B"),
        ("{% for m in messages %}{{ m.content | tojson | e }}{% endfor %}", "&#34;  a b &#34;"),
        ("{% for m in messages %}{{ m.content.split('</think>')[-1] | trim }}{% endfor %}", "a b"),
        ("{% for m in messages %}{{ m.content | length }}{% endfor %}", "6"),
    ],
)
def test_a_text_may_be_changed(source, shown):
    assert render(source, [{"role": "user", "content": "  a b "}]) == shown


def test_reasoning_of_earlier_turns_may_be_cut_out():
    thought = {"role": "assistant", "content": "<think>hm</think>Yes", "reasoning_content": "hm"}
    cut = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert render(cut, [USER, thought, USER]) == "Weather?YesWeather?"


# -- tools


@pytest.mark.parametrize("source", [QWEN_LIKE, published.CHATML, published.DEEPSEEK_V3, NEMOTRON])
def test_tools_are_refused_where_the_template_does_not_render_them(source):
    error = refusal(source, [USER], TOOLS)
    assert error.param == "tools" and "does not render tools" in error.message
    assert render(source, [USER], []) == render(source, [USER])


@pytest.mark.parametrize("source", [published.QWEN, published.LLAMA_3, published.GPT_OSS, published.MISTRAL])
def test_tools_are_rendered_where_the_template_knows_them(source):
    assert "weather" in render(source, [USER | {"content": "Hi"}], TOOLS)


def test_tools_that_only_some_turns_show_are_not_refused():
    assert "weather" not in render(published.MISTRAL, [USER, ASSISTANT], TOOLS)


@pytest.mark.parametrize("arguments", [ARGUMENTS, {"city": "Rome"}], ids=["text", "object"])
@pytest.mark.parametrize("content", [None, ""])
@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (QWEN_LIKE, '<call>get_weather{"city": "Rome"}'),
        (published.DEEPSEEK_V3, '<CALL>function<SEP>get_weather\n```json\n{"city": "Rome"}\n```'),
        (published.DEEPSEEK_V31, '<CALL>get_weather<SEP>{"city": "Rome"}'),
        (published.GPT_OSS, 'functions.get_weather<|message|>{"city": "Rome"}'),
        (published.SEED_OSS, "<function=get_weather><parameter=city>Rome"),
        (published.QWEN, '{"name": "get_weather", "arguments": {"city": "Rome"}}'),
        (published.LLAMA_3, '{"name": "get_weather", "parameters": {"city": "Rome"}}'),
    ],
    ids=["qwen-like", "deepseek v3", "deepseek v3.1", "gpt-oss", "seed-oss", "qwen", "llama 3"],
)
def test_a_tool_round_is_rendered_in_the_form_that_the_template_reads(source, shown, content, arguments):
    text = render(source, [USER, calls(content, arguments), RESULT])
    assert shown in text and "21 degrees" in text
    assert text.index(shown) < text.index("21 degrees")


def test_arguments_as_text_stay_as_the_model_wrote_them():
    assert '{"n":1e3 }' in render(published.DEEPSEEK_V3, [USER, calls(None, '{"n":1e3 }'), RESULT])
    assert "{}" in render(published.DEEPSEEK_V3, [USER, calls(None, None), RESULT])
    assert '"arguments": broken}' in render(published.QWEN, [USER, calls(None, "broken"), RESULT])


def test_calls_beside_a_text_are_a_message_of_their_own_where_they_would_be_lost():
    text = render(published.DEEPSEEK_V3, [USER, calls("Let me look."), RESULT])
    assert text.startswith("<U>Weather?<A>Let me look.<END><CALL>function<SEP>get_weather")
    assert text.endswith("<T>21 degrees")
    assert refusal(published.DEEPSEEK_V3, [USER, calls("Let me look."), {"role": "User", "content": "x"}]).message.startswith(
        "messages.2:"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("source", "message", "place"),
    [
        (published.CHATML, calls("calling"), 0),
        (published.MISTRAL, calls(), 0),
        (published.GPT_OSS, calls(count=2), 1),
        (
            NEMOTRON,
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            0,
        ),
    ],
)
def test_a_call_that_is_left_out_is_refused(source, message, place):
    assert refusal(source, [USER, message]).message.startswith(f"messages.1.tool_calls.{place}: ")


def test_a_text_beside_a_call_may_be_left_out():
    assert "Let me" not in render(published.LLAMA_3, [USER, calls("Let me look."), RESULT])


def test_both_kinds_of_calls_in_one_message_are_refused():
    message = calls() | {"function_call": {"name": "f", "arguments": "{}"}}
    assert "messages.1 has both" in refusal(QWEN_LIKE, [USER, message]).message


def test_a_template_that_reads_lists_of_parts_gets_them():
    assert render(published.MINIMAX, [SYSTEM, USER]) == "system:Be brief.user:Weather?"


# -- reasoning


@pytest.mark.parametrize("read", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.parametrize("sent", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_found_under_any_name(sent, read):
    source = "{% for m in messages %}{{ '[' + m.NAME + ']' if m.NAME }}{{ m.content }}{% endfor %}".replace(
        "NAME", read
    )
    assert render(source, [USER, ASSISTANT | {sent: "easy"}]) == "Weather?[easy]Hi there."


def test_an_empty_name_of_reasoning_hides_no_other():
    source = "{% for m in messages %}{{ '[' + m.reasoning_content + ']' if m.reasoning_content }}{{ m.content }}{% endfor %}"
    message = ASSISTANT | {"reasoning_content": "", "reasoning": None, "thinking": "easy"}
    assert render(source, [USER, message]) == "Weather?[easy]Hi there."


def test_a_variable_that_must_have_an_effect_is_refused_where_the_template_does_not_read_it(caplog):
    options = {"variables": {"reasoning_effort": "high"}, "must_read": ["reasoning_effort"]}
    assert "Reasoning: high" in render(published.GPT_OSS, [USER], **options)
    error = refusal(published.CHATML, [USER], **options)
    assert error.param == "reasoning_effort" and "does not read it" in error.message


def test_other_variables_that_it_does_not_read_are_logged_once(caplog):
    for _ in range(2):
        render(published.CHATML, [USER], variables={"enable_thinking": True, "unheard_of": 1})
    assert [record.args for record in caplog.records if "does not read" in record.msg] == [
        ("enable_thinking",), ("unheard_of",),
    ]  # fmt: skip


# -- prefill


@pytest.mark.parametrize("source", ["chatml", "llama 2", "llama 3", "qwen", "gemma", "generation"])
@pytest.mark.parametrize("begun", ["AI is", "AI is ", "<b> & so", [{"type": "text", "text": "AI"}]])
def test_a_continued_message_is_rendered_as_by_transformers(source, begun):
    from transformers.utils.chat_template_utils import render_jinja_template

    source = published.TEMPLATES[source]
    messages = [USER, {"role": "assistant", "content": begun}]
    try:
        (theirs,), _ = render_jinja_template(
            [messages], chat_template=source, continue_final_message=True, bos_token="", eos_token=""
        )
    except Exception:
        refusal(source, messages, continue_final_message=True)
    else:
        assert render(source, messages, continue_final_message=True) == theirs
        assert isinstance(begun, list) or theirs.rstrip().endswith(begun.rstrip())


@pytest.mark.parametrize("content", ["", " ", None, []])
def test_there_must_be_something_to_continue(content):
    error = refusal(
        published.CHATML, [USER, {"role": "assistant", "content": content}], continue_final_message=True
    )
    assert "no text to continue" in error.message


def test_an_answer_is_not_begun_behind_an_open_message():
    error = refusal(
        published.CHATML, [USER, ASSISTANT], continue_final_message=True, add_generation_prompt=True
    )
    assert error.param == "continue_final_message"


# -- what is no text

QWEN_2_VL = (
    "{% for m in messages %}<{{ m.role }}>{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}"
    "{% if part.type == 'image' or 'image' in part or 'image_url' in part %}<|image_pad|>{% elif 'text' in part %}{{ part.text }}"
    "{% endif %}{% endfor %}{% endif %}{% endfor %}"
)
PICTURE = {
    "role": "user",
    "content": [{"type": "text", "text": "What"}, {"type": "image"}, {"type": "text", "text": "?"}],
}


def test_an_image_has_its_place_where_a_template_reads_parts():
    assert render(QWEN_2_VL, [USER, ASSISTANT, PICTURE]) == (
        "<user>Weather?<assistant>Hi there.<user>What<|image_pad|>?"
    )


def test_an_image_is_a_marker_in_a_line_where_a_template_reads_texts():
    text = render(published.CHATML, [USER, ASSISTANT, PICTURE], image_marker="<image>")
    assert "What\n<image>\n?" in text


@pytest.mark.parametrize("source", [published.CHATML, published.LLAMA_3, "{{ messages | tojson }}"])
def test_an_image_is_refused_where_a_template_reads_texts(source):
    error = refusal(source, [USER, ASSISTANT, PICTURE])
    assert error.message.startswith("messages.2: ") and "'image'" in error.message
