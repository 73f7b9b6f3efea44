"""Anthropic's and Ollama's clients as they are, against servers with the demo model: `make test-clients`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import LightLLMServer
from support.unmodified_clients import needs_clients, run

pytestmark = needs_clients

TEMPLATE = """\
{{- bos_token }}
{%- if tools %}{{ "<|im_start|>system\\n" + (tools | tojson) + "<|im_end|>\\n" }}{% endif %}
{%- for message in messages %}
    {{- "<|im_start|>" + message.role + "\\n" + message.content }}
    {%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}
    {{- "<|im_end|>\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}"""
"""The demo model's, with tools."""
ANTHROPIC = """\
    import anthropic

    client = anthropic.Anthropic(base_url=URL, api_key="secret", max_retries=0)
    turn = {"role": "user", "content": "What is the capital of France?"}
    ask = {"extra_body": {"temperature": 0}, "model": "claude-haiku", "max_tokens": 40, "messages": [turn]}
    whole = client.messages.create(**ask)
    assert "Paris" in whole.content[0].text and whole.stop_reason == "end_turn", whole
    assert whole._request_id and whole.model == "claude-haiku"
    with client.messages.stream(**ask) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text and final.stop_reason == "end_turn"
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert final.usage.input_tokens + final.usage.cache_read_input_tokens == client.messages.count_tokens(
        model="claude-haiku", messages=[turn]
    ).input_tokens
    with client.beta.messages.stream(betas=["x"], **ask) as stream:
        assert stream.get_final_message().content[0].text == text
    stopped = client.messages.create(**ask, stop_sequences=["aris"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "aris", stopped
    assert stopped.content[0].text == text.partition("aris")[0]
    word = text.partition(" ")[0]
    begun = client.messages.create(**ask | {"messages": [turn, {"role": "assistant", "content": word}]})
    assert word + begun.content[0].text == text, begun

    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"], "additionalProperties": False}
    tool = {"name": "add", "description": "adds", "input_schema": schema}
    for choice in ({"type": "any"}, {"type": "tool", "name": "add"}):
        fields = ask | {"tools": [tool], "tool_choice": choice | {"disable_parallel_tool_use": True}, "max_tokens": 300}
        called = client.messages.create(**fields)
        call = called.content[-1]
        assert called.stop_reason == "tool_use" and call.name == "add" and isinstance(call.input["n"], int), called
        with client.messages.stream(**fields) as stream:
            assert stream.get_final_message().content[-1].input == call.input
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}]}
    again = client.messages.create(**ask | {"tools": [tool], "messages": [turn, {"role": "assistant", "content": called.content}, result]})
    assert again.stop_reason in ("end_turn", "max_tokens"), again

    def refused(error, **fields):
        try:
            client.messages.create(**ask | fields)
        except error as found:
            assert found.body["type"] == "error" and found.request_id, found.body
            return found.body["error"]
        raise AssertionError("not refused")

    long = [{"role": "user", "content": "hello " * 5000}]
    assert "prompt is too long: " in refused(anthropic.BadRequestError, messages=long)["message"]
    assert "web_search" in refused(anthropic.BadRequestError, tools=[{"type": "web_search_20250305", "name": "web_search"}])["message"]
    client = anthropic.Anthropic(base_url=URL, auth_token="wrong", max_retries=0)
    assert refused(anthropic.AuthenticationError)["type"] == "authentication_error"
    print("done")
"""


OLLAMA = """\
    import ollama

    client = ollama.Client(host=URL, headers={"Authorization": "Bearer secret"})
    (model,) = client.list().models
    assert "completion" in client.show(model.model).capabilities
    ask = {"model": model.model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    greedy = {"temperature": 0, "num_predict": 40}
    whole = client.chat(**ask, options=greedy, keep_alive="5m")
    assert "Paris" in whole.message.content and whole.done_reason == "stop" and whole.eval_count > 3, whole
    assert whole.total_duration >= whole.eval_duration > 0
    stream = list(client.chat(**ask, options=greedy, stream=True))
    assert "".join(part.message.content for part in stream) == whole.message.content
    assert stream[-1].done and stream[-1].eval_count == whole.eval_count
    text = client.generate(model.model, "What is the capital of France?", options=greedy).response
    assert text == whole.message.content
    pieces = client.generate(model.model, "What is the capital of France?", options=greedy, stream=True)
    assert "".join(piece.response for piece in pieces) == text
    raw = client.generate(model.model, "2+3=", raw=True, options=greedy)
    assert raw.response.strip().startswith("5"), raw
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"], "additionalProperties": False}
    formed = client.chat(**ask, format=schema, options={"num_predict": 200})
    import json
    assert isinstance(json.loads(formed.message.content)["n"], int), formed
    assert client.generate(model.model, "").done_reason == "load"
    try:
        client.chat(**ask, options={"mirostat": 2})
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "mirostat" in error.error
    else:
        raise AssertionError("not refused")
    print("done")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LightLLMServer]:
    template: Path = tmp_path_factory.mktemp("template") / "tools.jinja"
    template.write_text(TEMPLATE)
    options = ["--chat_template", str(template), "--api_key", "secret", "--data_type", "fp32"]
    with LightLLMServer([*options, "--max_total_token_num", "20000"]) as server:
        yield server


def test_anthropics_client(server: LightLLMServer) -> None:
    assert run(ANTHROPIC, server.url).endswith("done\n")


def test_ollamas_client(server: LightLLMServer) -> None:
    assert run(OLLAMA, server.url).endswith("done\n")
