"""Servers for the clients: with the demo model, for texts and for vectors, and one whose model thinks and calls tools as it is
told to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.server import LightLLMServer
from support.unmodified_clients import KEY, Servers

import lightllm

DEMO = Path(lightllm.__file__).parent / "demo"
DEMO_TEMPLATE = """\
{{- bos_token }}
{%- if tools is defined and tools %}{{ "<|im_start|>system\\n" + (tools | tojson) + "<|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content }}
    {%- for call in message.tool_calls | default([], true) %}{{ call | tojson }}{% endfor %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
"""The demo model's, with tools."""
AGENT_TEMPLATE = """\
{%- if tools %}{{ "<|im_start|>system\\n<tools>" + (tools | tojson) + "</tools><|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" }}
    {%- if message.role == "tool" %}{{ "<tool_response>\\n" + message.content + "\\n</tool_response>" }}
    {%- else %}
        {%- if message.reasoning_content %}{{ "<think>\\n" + message.reasoning_content + "\\n</think>\\n\\n" }}{% endif %}
        {{- message.content or "" }}
        {%- for call in message.tool_calls or [] %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}
    {%- endif %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\\n" }}
    {%- if enable_thinking is defined and not enable_thinking %}{{ "<think>\\n\\n</think>\\n\\n" }}{% endif %}
{%- endif %}"""
"""As Qwen's."""


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


THOUGHT = "<think>\nI have to add.\n</think>\n\n"
REPLIES = [
    {"after": "What is 7 plus 5?", "text": THOUGHT + call("add", a=7, b=5)},
    {"after": "the sum is 12", "text": "<think>\nI am told.\n</think>\n\nIt is 12."},
    {
        "after": "What are 7 plus 5 and 20 plus 3?",
        "text": call("add", a=7, b=5) + "\n" + call("add", a=20, b=3),
    },
    {"after": "the sum is 23", "text": "They are 12 and 23."},
    {"after": "Describe Paris as JSON.", "text": '{"city": "Paris", "inhabitants": 2}'},
    {"after": "Tell a long story.", "text": "Once upon a time " * 500},
    {"text": "I do not know."},
]


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("servers")
    demo, agent, replies = folder / "demo.jinja", folder / "agent.jinja", folder / "replies.json"
    demo.write_text(DEMO_TEMPLATE)
    agent.write_text(AGENT_TEMPLATE)
    replies.write_text(json.dumps(REPLIES))
    greedy = folder / "lightllm-demo"  # for clients that say nothing of a temperature, or must not
    shutil.copytree(DEMO, greedy)
    defaults = greedy / "generation_config.json"
    defaults.write_text(json.dumps(json.loads(defaults.read_text()) | {"temperature": 0.0}))
    common = ["--api_key", KEY, "--max_total_token_num", "20000"]
    model = ["--model_dir", str(greedy), "--chat_template", str(demo), "--data_type", "fp32"]
    forms = ["--tool_call_parser", "hermes", "--reasoning_parser", "think", "--chat_template", str(agent)]
    with (
        LightLLMServer([*common, *model]) as first,
        LightLLMServer([*common, *forms, "--mock_backend", f"step_ms=2,replies={replies}"]) as second,
        LightLLMServer([*common, *model, "--task", "embed"]) as third,
    ):
        yield Servers(first, second, third)
