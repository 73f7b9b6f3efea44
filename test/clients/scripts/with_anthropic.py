"""anthropic: messages whole and streamed, tools, counting, refusals."""

import anthropic
from meeting import CAPITAL, DEMO, KEY, LONG

client = anthropic.Anthropic(base_url=DEMO, api_key=KEY, max_retries=0)
turn = {"role": "user", "content": CAPITAL}
ask = {"extra_body": {"temperature": 0}, "model": "claude-haiku", "max_tokens": 40, "messages": [turn]}
whole = client.messages.create(**ask)
assert "Paris" in whole.content[0].text and whole.stop_reason == "end_turn", whole
assert whole._request_id and whole.model == "claude-haiku"
with client.messages.stream(**ask) as stream:
    text = "".join(stream.text_stream)
    final = stream.get_final_message()
assert text == whole.content[0].text == final.content[0].text and final.stop_reason == "end_turn"
assert final.usage.output_tokens == whole.usage.output_tokens
assert (
    final.usage.input_tokens + final.usage.cache_read_input_tokens
    == client.messages.count_tokens(model="claude-haiku", messages=[turn]).input_tokens
)
with client.beta.messages.stream(betas=["x"], **ask) as stream:
    assert stream.get_final_message().content[0].text == text
stopped = client.messages.create(**ask, stop_sequences=["aris"])
assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == "aris", stopped
assert stopped.content[0].text == text.partition("aris")[0]
word = text.partition(" ")[0]
begun = client.messages.create(**ask | {"messages": [turn, {"role": "assistant", "content": word}]})
assert word + begun.content[0].text == text, begun

schema = {
    "type": "object",
    "properties": {"n": {"type": "integer", "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
tool = {"name": "add", "description": "adds", "input_schema": schema}
for choice in ({"type": "any"}, {"type": "tool", "name": "add"}):
    fields = ask | {
        "tools": [tool],
        "tool_choice": choice | {"disable_parallel_tool_use": True},
        "max_tokens": 300,
    }
    called = client.messages.create(**fields)
    call = called.content[-1]
    assert called.stop_reason == "tool_use" and call.name == "add" and isinstance(call.input["n"], int), (
        called
    )
    with client.messages.stream(**fields) as stream:
        assert stream.get_final_message().content[-1].input == call.input
result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}]}
again = client.messages.create(
    **ask | {"tools": [tool], "messages": [turn, {"role": "assistant", "content": called.content}, result]}
)
assert again.stop_reason in ("end_turn", "max_tokens"), again


def refused(error, **fields):
    try:
        client.messages.create(**ask | fields)
    except error as found:
        assert found.body["type"] == "error" and found.request_id, found.body
        return found.body["error"]
    raise AssertionError("not refused")


long = [{"role": "user", "content": LONG}]
assert "prompt is too long: " in refused(anthropic.BadRequestError, messages=long)["message"]
assert (
    "web_search"
    in refused(anthropic.BadRequestError, tools=[{"type": "web_search_20250305", "name": "web_search"}])[
        "message"
    ]
)
client = anthropic.Anthropic(base_url=DEMO, auth_token="wrong", max_retries=0)
assert refused(anthropic.AuthenticationError)["type"] == "authentication_error"
print("done")
