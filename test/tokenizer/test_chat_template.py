"""Chat templates: rendered as transformers renders them, with errors that are the request's."""

import datetime
import json

import pytest
from support import tokenizers

from lightllm.errors import InvalidModel, InvalidOption, InvalidParameter
from lightllm.tokenizer import chat_template, load_tokenizer
from lightllm.tokenizer.chat_template import ChatTemplates

LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- set date_string = date_string | default(strftime_now("%d %b %Y")) %}
<|start_header_id|>system<|end_header_id|>

Today: {{ date_string }}
{% if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {{- message.content | tojson if message.content is mapping or message.content is iterable else message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = """{%- set ns = namespace(index=0, system="") %}
{%- for message in messages %}
    {%- if message.role == "system" %}{% set ns.system = message.content %}{% continue %}{% endif %}
    {%- if message.role == "user" %}
        {%- if tools and loop.last %}{{ "[AVAILABLE_TOOLS] " + (tools | map(attribute="function") | list | tojson) + "[/AVAILABLE_TOOLS]" }}{% endif %}
        {{- "[INST] " + (ns.system + "\\n\\n" if ns.system and loop.last else "") + message.content + "[/INST]" }}
    {%- elif message.content is string %}
        {{- " " + message.content|trim + eos_token }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}{{ ns.index }}"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set reasoning = message.reasoning_content if message.reasoning_content is string else '' %}
    {%- if message.role == "assistant" and loop.index0 > ns.last_query_index and reasoning %}
        {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + (message.content or '').lstrip('\\n') }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '<tool_call>{"name": "' }}{{- call.function.name }}{{- '", "arguments": ' }}
        {%- if call.function.arguments is string %}{{- call.function.arguments }}{%- else %}{{- call.function.arguments | tojson }}{%- endif %}
        {{- '}</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\\n' + (message['content'] or '') | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"
)
GENERATION = """{%- for message in messages %}
  {% if message.role == "assistant" %}
    {% generation %}{{ message.content }}{% endgeneration %}
  {% else %}
{{ message.role }}: {{ message.content | e }} {% endif %}
{%- endfor %}"""
ODDS = (
    "{% set d = dict(a=1, b=2) %}{{ d | tojson }}{{ dict.fromkeys(['x'], 3) }}{{ {'ä<&>': [1.5, none, true]} | tojson }}"
    "{% for m in messages %}{% if loop.index0 == 2 %}{% break %}{% endif %}{{ m.content[:3] | upper }}{% endfor %}"
    "{% macro shout(t) %}{{ t }}!{% endmacro %}{{ shout(messages[0].content) }}{{ missing is defined }}{{ missing }}"
    "{{ documents }}{{ 'x' * 5 + 'y' }}{{ 2 ** 8 }}{{ range(3) | list }}{{ [3, 1] | sort }}{{ messages | length }}"
)
TEMPLATES = {
    "llama 2": LLAMA_2, "llama 3": LLAMA_3, "chatml": CHATML, "mistral": MISTRAL, "qwen": QWEN, "gemma": GEMMA,
    "generation": GENERATION, "odds": ODDS,
}  # fmt: skip

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Das <Wetter> & more",
            "parameters": {"type": "object"},
        },
    }
]
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "n": 1}}}
USER = {"role": "user", "content": "  Hello <b>&\n🙂 "}
ASSISTANT = {"role": "assistant", "content": "Hi there."}
SYSTEM = {"role": "system", "content": "Be brief."}
CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [USER, ASSISTANT, USER, ASSISTANT, {"role": "user", "content": "Bye"}],
    "tool call": [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 3}'},
    ],
    "reasoning": [USER, {"role": "assistant", "content": "4", "reasoning": "2 and 2"}],
    "wrong order": [ASSISTANT, USER],
    "empty content": [{"role": "user", "content": None}],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_rendered_as_by_transformers(template, conversation):
    from transformers.utils.chat_template_utils import render_jinja_template

    source, messages = TEMPLATES[template], CONVERSATIONS[conversation]
    ours = ChatTemplates({"default": source})
    for tools in (None, TOOLS):
        for add_generation_prompt in (True, False):
            variables = {"bos_token": "<s>", "eos_token": "</s>", "enable_thinking": False}
            try:
                rendered, _ = render_jinja_template(
                    [messages], tools=tools, chat_template=source,
                    add_generation_prompt=add_generation_prompt, **variables,
                )  # fmt: skip
            except Exception as error:
                with pytest.raises(InvalidParameter) as refused:
                    ours.render(messages, tools, add_generation_prompt, variables)
                assert " ".join(str(error).split()) in refused.value.message
                assert refused.value.param == "messages"
            else:
                assert ours.render(messages, tools, add_generation_prompt, variables) == rendered[0]


def render(source, messages=None, **variables):
    return ChatTemplates({"default": source}).render(messages or [USER], None, True, variables)


def test_messages_are_not_changed():
    message = {"role": "assistant", "content": "x", "reasoning": "y"}
    render(CHATML, [message])
    assert message == {"role": "assistant", "content": "x", "reasoning": "y"}


def test_date_is_today():
    assert render("{{ strftime_now('%Y-%m-%d') }}") == datetime.datetime.now().strftime("%Y-%m-%d")


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(90000) %}{% for b in range(90000) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{{ 'x' * 10 ** 9 }}",
        "{{ [1] * 10 ** 9 }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ messages[0].__class__.__mro__ }}{{ messages.append(1) }}",
        "{{ namespace(__init__=1) }}",
        "{{ 1 / 0 }}",
        "{{ messages[0].content.nothing.at_all }}",
    ],
)
def test_templates_that_explode_or_reach_out_are_an_error_of_the_request(source, monkeypatch):
    monkeypatch.setattr(chat_template, "MAX_RENDERED_CHARACTERS", 1_000_000)
    with pytest.raises(InvalidParameter) as refused:
        render(source)
    assert "chat template" in refused.value.message
    assert "\n" not in refused.value.message and len(refused.value.message) < 400


def test_a_message_that_is_no_object_is_refused():
    with pytest.raises(InvalidParameter, match="a message must be an object"):
        render(CHATML, ["Hello"])


def test_variables_cannot_replace_the_messages():
    templates = ChatTemplates({"default": "{{ messages | length }}"})
    assert templates.render([USER], None, True, {"messages": []}) == "1"


# -- where templates are found


def folder(path, **config):
    return tokenizers.byte_level(path, **config)


def chat(model_dir, override=None, tools=None):
    tokenizer = load_tokenizer(str(model_dir), chat_template=override)
    return tokenizer.apply_chat_template([USER], tools=tools)


def test_template_of_tokenizer_config_gets_the_special_tokens(tmp_path):
    model = folder(
        tmp_path, chat_template="{{ bos_token }}{{ messages[0].role }}{{ eos_token }}{{ greeting }}"
    )
    tokenizer = load_tokenizer(str(model))
    assert tokenizer.has_chat_template
    assert tokenizer.apply_chat_template([USER], greeting="hey") == "<s>user</s>hey"


def test_list_of_templates_tool_use_for_tools(tmp_path):
    templates = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    model = folder(tmp_path, chat_template=templates)
    assert (chat(model), chat(model, tools=TOOLS)) == ("plain", "tools")


def test_list_of_templates_without_default_says_so(tmp_path):
    model = folder(tmp_path, chat_template=[{"name": "rag", "template": "x"}])
    with pytest.raises(InvalidParameter, match=r"\['rag'\] but none named default"):
        chat(model)


def test_jinja_files_win_over_tokenizer_config(tmp_path):
    model = folder(tmp_path, chat_template="config")
    (model / "chat_template.jinja").write_text("file")
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("file for tools")
    assert (chat(model), chat(model, tools=TOOLS)) == ("file", "file for tools")


def test_chat_template_json_is_found(tmp_path):
    model = folder(tmp_path, chat_template=None)
    (model / "chat_template.json").write_text(json.dumps({"chat_template": "processor"}))
    assert chat(model) == "processor"


def test_override_is_a_file_or_the_template_itself(tmp_path):
    model = folder(tmp_path / "model")
    (tmp_path / "mine.jinja").write_text("from a file")
    assert chat(model, str(tmp_path / "mine.jinja")) == "from a file"
    assert chat(model, "{{ messages[0].role }}") == "user"


@pytest.mark.parametrize("override", ["/does/not/exist.jinja", "{% for m in messages %}no end"])
def test_bad_override_ends_the_launch(tmp_path, override):
    with pytest.raises(InvalidOption, match="--chat_template"):
        load_tokenizer(str(folder(tmp_path)), chat_template=override)


def test_model_without_template_cannot_chat_and_says_what_to_do(tmp_path):
    tokenizer = load_tokenizer(str(folder(tmp_path, chat_template=None)))
    assert not tokenizer.has_chat_template
    with pytest.raises(InvalidParameter, match="no chat template.*--chat_template FILE"):
        tokenizer.apply_chat_template([USER])


def test_broken_template_of_a_model_leaves_everything_else_working(tmp_path):
    tokenizer = load_tokenizer(str(folder(tmp_path, chat_template="{% if %}")))
    assert tokenizer.decode(tokenizer.encode("Hello")) == "Hello"
    with pytest.raises(InvalidParameter, match="syntax error in line 1"):
        tokenizer.apply_chat_template([USER])


def test_unreadable_template_file_names_the_file(tmp_path):
    model = folder(tmp_path)
    (model / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidModel, match=r"chat_template\.jinja"):
        load_tokenizer(str(model))
