"""What a request of `/v1/responses` refers to instead of sending it: earlier responses, and single items of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from lightllm.errors import InvalidParameter, PreviousResponseNotFound
from lightllm.httpserver.openai_responses.items import response_of
from lightllm.httpserver.openai_responses.models import InputItem
from lightllm.httpserver.openai_responses.store import ResponseStore
from lightllm.httpserver.reading.field_types import MAX_STRINGS

_SHOWN = 80
"""Characters of a wrong id that an error repeats."""


def earlier_items(store: ResponseStore | None, owner: str, response_id: str) -> list[InputItem]:
    """The items of a response and of all that it follows, in their order. Raises `PreviousResponseNotFound`."""
    turns: list[list[dict[str, Any]]] = []
    previous: str | None = response_id
    while previous is not None and sum(map(len, turns)) <= MAX_STRINGS:
        asked = store.asked(owner, previous) if store is not None else None
        data = store.response(owner, previous) if store is not None else None
        if asked is None or data is None:
            raise PreviousResponseNotFound(
                f"Previous response with id {previous[:_SHOWN]!r} not found: it is not kept here, or no longer",
                param="previous_response_id",
            )
        response = msgspec.json.decode(data)
        if response["status"] == "in_progress":
            raise InvalidParameter(
                f"the response {previous!r} is still in progress", param="previous_response_id"
            )
        turns.append([*asked.items, *response["output"]])
        previous = asked.previous
    return [InputItem.model_validate(item) for turn in reversed(turns) for item in turn]


def is_reference(item: InputItem) -> bool:
    """Whether it stands for another item, whose id it has."""
    if item.type is None:
        return item.id is not None and item.model_fields_set <= {"id", "type"}
    return item.type == "item_reference"


def with_items_of_references(
    store: ResponseStore | None, owner: str, items: Sequence[InputItem]
) -> list[InputItem]:
    """The items, those in the place of references that these stand for. Raises `InvalidParameter`."""
    known: dict[str, dict[str, Any]] = {}
    seen: set[str] = set()
    found = []
    for index, item in enumerate(items):
        if is_reference(item):
            response_id = response_of(item.id or "")
            if store is not None and response_id is not None and response_id not in seen:
                seen.add(response_id)
                known |= _items_of(store, owner, response_id)
            if item.id not in known:
                raise InvalidParameter(
                    f"input.{index}: Item with id {(item.id or '')[:_SHOWN]!r} not found: it is of no response that is kept here",
                    param="input",
                )
            item = InputItem.model_validate(known[item.id])
        found.append(item)
    return found


def _items_of(store: ResponseStore, owner: str, response_id: str) -> dict[str, dict[str, Any]]:
    """By their ids; none of a response that is not kept."""
    asked, data = store.asked(owner, response_id), store.response(owner, response_id)
    if asked is None or data is None:
        return {}
    return {item["id"]: item for item in [*asked.items, *msgspec.json.decode(data)["output"]]}
