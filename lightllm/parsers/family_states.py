"""States that the tables of several families have in common (`families.py`)."""

from __future__ import annotations

from lightllm.parsers.table import State, To, closes, done, opens, to

_MEMBERS = ("arguments", "parameters")


def json_call(
    after: str, prefix: str = "", name: str = "name", strict: bool = False, ids: tuple[str, ...] = ("id",)
) -> dict[str, State]:
    """States for `{"name": ..., "arguments": {...}}`, from behind the first bracket (`call`) to behind the last one (`after`).
    strict: with the name first; else an object with another order is read as a whole."""
    whole = "" if strict else f"{prefix}object"
    states = {
        "call": State(
            "gap", {f'"{name}"': to("colon"), **{f'"{key}"': to("id_colon") for key in ids}}, whole
        ),
        "id_colon": State("gap", {":": to("id_quote")}, whole),
        "id_quote": State("gap", {'"': to("id")}, whole),
        "id": State("call_id", {'"': to("id_comma")}),
        "id_comma": State("gap", {",": to("call")}, whole),
        "colon": State("gap", {":": to("quote")}, whole),
        "quote": State("gap", {'"': to("name")}, whole),
        "name": State("name", {'"': to("comma")}),
        "comma": State("gap", {",": to("key"), "}": To(after, ("open", "close"))}, whole),
        "key": State("gap", {f'"{key}"': to("value_colon") for key in _MEMBERS}, whole),
        "value_colon": State("gap", {":": opens("arguments")}, whole),
        "arguments": State("json", then=closes("close")),
        "close": State("gap", {"}": done(after), ",": done("rest")}, after),
        "rest": State("skip", {"}": done(after)}),
        "object": State("object", then=To(after)),
    }
    own = {state: prefix + state for state in states}

    def renamed(way: To) -> To:
        return To(own.get(way.state, way.state), way.does)

    return {
        own[key]: State(
            state.reads, {mark: renamed(way) for mark, way in state.exits.items()}, own.get(state.otherwise, state.otherwise),
            renamed(state.then),
        )
        for key, state in states.items()
    }  # fmt: skip


def json_family(
    begin: tuple[str, ...], end: tuple[str, ...] = (), between: tuple[str, ...] = (), name: str = "name"
) -> dict[str, State]:
    """States for JSON calls, alone or in a list, between markers."""
    content = State("content", {mark: to("marked") for mark in begin})
    ends = {mark: to("content") for mark in end}
    return {
        "start": content,
        "content": content,
        "marked": State(
            "gap", {"{": to("call"), "[": to("list"), **{mark: to("marked") for mark in between}}
        ),
        "list": State("gap", {"{": to("item_call"), "]": done("after")}),
        "item_after": State("gap", {",": to("list"), "]": done("after")}, "content"),
        # several calls may stand between two markers
        "after": State("gap", {"{": to("call"), **ends}, "content"),
        **json_call("after", "", name, ids=("id", "tool_call_id")),
        **json_call("item_after", "item_", name, ids=("id", "tool_call_id")),
    }


def parameters(
    begin: str, call: str, behind_name: str, key: str, behind_key: str, value_end: str, call_end: str, end: str, newline: bool = False
) -> dict[str, State]:  # fmt: skip
    """States for calls whose parameters stand between markers, one by one. newline: values stand on lines of their own."""
    content = State("content", {begin: to("marked")})
    ends = {call_end: closes("after"), **({end: closes("content")} if end != call_end else {})}
    value_ends = {value_end: to("parameters")} | ({f"\n{value_end}": to("parameters")} if newline else {})
    return {
        "start": content,
        "content": content,
        "marked": State("gap", {call: to("name")}),
        "name": State("name", {behind_name: opens("parameters")}),
        "parameters": State("skip", {key: to("key"), begin: closes("marked"), **ends}),
        "key": State("key", {behind_key: to("value")}),
        "value": State("value", value_ends, newline=newline),
        "after": State("gap", {call: to("name"), end: to("content"), begin: to("marked")}, "content"),
    }
