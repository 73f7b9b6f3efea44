"""Chat templates shaped like published ones, and the conversations that they are tried with."""

from __future__ import annotations

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
DEEPSEEK_V3 = (
    "{{ bos_token }}{%- for m in messages %}{%- if m['role'] == 'system' %}{{ m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'user' %}{{ '<U>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is none %}{%- for t in m['tool_calls'] %}"
    "{{ '<CALL>' + t['type'] + '<SEP>' + t['function']['name'] + '\\n```json\\n' + t['function']['arguments'] + '\\n```' }}"
    "{%- endfor %}{%- endif %}"
    "{%- if m['role'] == 'assistant' and m['content'] is not none %}{{ '<A>' + m['content'] + '<END>' }}{%- endif %}"
    "{%- if m['role'] == 'tool' %}{{ '<T>' + m['content'] }}{%- endif %}{%- endfor %}"
)
"""Calls stand where the content is none, their arguments are text; tools are not rendered."""
DEEPSEEK_V31 = (
    "{%- for m in messages %}{%- if m['role'] == 'assistant' and m['tool_calls'] %}{{ '<A>' + (m['content'] or '') }}"
    "{%- for t in m['tool_calls'] %}{{ '<CALL>' + t['function']['name'] + '<SEP>' + t['function']['arguments'] }}{%- endfor %}"
    "{%- elif m['role'] in ('user', 'assistant', 'tool', 'system') %}{{ '<' + m['role'] + '>' + m['content'] }}{%- endif %}{%- endfor %}"
)
"""Calls beside any content, their arguments are text."""
GPT_OSS = """{%- if messages[0].role in ("developer", "system") %}
    {{- "<|start|>developer<|message|>" + messages[0].content + "<|end|>" }}
    {%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- "Reasoning: " + reasoning_effort | default("medium") }}
{%- if tools %}{%- for tool in tools %}{{- "type " + tool.function.name }}{%- endfor %}{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" %}
        {%- if "<|channel|>" in message.content %}{{- raise_exception("no channels") }}{%- endif %}
        {%- if "tool_calls" in message %}
            {%- if message.thinking %}{{- "<analysis>" + message.thinking }}{%- endif %}
            {%- set call = message.tool_calls[0].function %}
            {{- "<|start|>assistant to=functions." + call.name + "<|message|>" + call.arguments | tojson }}
        {%- else %}{{- "<|start|>assistant<|message|>" + message.content }}{%- endif %}
    {%- elif message.role == "tool" %}{{- "<|start|>functions<|message|>" + message.content | tojson }}
    {%- elif message.role == "user" %}{{- "<|start|>user<|message|>" + message.content }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- "<|start|>assistant" }}{%- endif %}"""
"""The first call of a message only, beside an empty string; reasoning is called thinking."""
SEED_OSS = """{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- "<function=" + call.function.name + ">" }}
            {%- for key, value in call.function.arguments.items() %}{{- "<parameter=" + key + ">" + value | string }}{%- endfor %}
        {%- endfor %}
    {%- elif message.role in ("system", "user", "assistant", "tool") %}{{- "<" + message.role + ">" + message.content }}{%- endif %}
{%- endfor %}"""
"""Arguments are an object."""
MINIMAX = """{%- for message in messages %}{%- for part in message.content %}
    {{- message.role + ":" + part.text if part.type == "text" }}
{%- endfor %}{%- endfor %}"""
"""A content is a list of parts."""
TEMPLATES = {
    "llama 2": LLAMA_2, "llama 3": LLAMA_3, "chatml": CHATML, "mistral": MISTRAL, "qwen": QWEN, "gemma": GEMMA,
    "generation": GENERATION, "odds": ODDS, "gpt-oss": GPT_OSS, "seed-oss": SEED_OSS,
}  # fmt: skip
"""Those that take messages as transformers' documentation has them: null is no content, arguments are an object."""

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

LLAVA_HF = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    "{# Images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Texts next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' ' }}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' ' }}"
    "{% endgeneration %}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
"""Of LLaVA-1.5 as converted: typed content, the images of a message before its texts."""
QWEN_2_VL = (
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
    "{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}"
    "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Of Qwen2-VL and Qwen2.5-VL: a string, or parts in any order; images are numbered when asked for."""
GEMMA_3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
"""A string, or parts in any order; the system message stands in front of the first user's."""
