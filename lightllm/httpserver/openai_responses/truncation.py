"""`truncation: auto`: what does not fit loses the oldest items of its conversation, as few as will do.

System messages and what the model is to answer stay: the last message of the user, and behind it the latest turn of the model with
its results. A call and its result go together; what is left begins with a message of the user.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from lightllm.errors import PromptTooLong
from lightllm.httpserver.openai.api import PreparedChat
from lightllm.httpserver.openai.models import ChatRequest, Message
from lightllm.httpserver.openai_responses.input import ChatOfResponse

_STAY = ("system", "developer")


async def prepare_what_fits(
    chat: ChatOfResponse, prepare: Callable[[ChatOfResponse], Awaitable[PreparedChat]]
) -> tuple[PreparedChat, ChatOfResponse]:
    """What `prepare` makes of a chat, and what is left of that. Raises what `prepare` raises, `PromptTooLong` if no less is
    possible."""
    try:
        return await prepare(chat), chat
    except PromptTooLong:
        groups = droppable(chat.request.messages)
        if not groups:
            raise
    shorter = _without(chat, groups)
    best = await prepare(shorter), shorter
    fits, too_much = len(groups), 0
    while fits - too_much > 1:
        count = (fits + too_much) // 2
        shorter = _without(chat, groups[:count])
        try:
            best, fits = (await prepare(shorter), shorter), count
        except PromptTooLong:
            too_much = count
    return best


def droppable(messages: Sequence[Message]) -> list[list[int]]:
    """Indices of messages that go together, in the order in which they go."""
    users = [index for index, message in enumerate(messages) if message.role == "user"]
    last = users[-1] if users else -1
    groups: list[list[int]] = []
    for index, message in enumerate(messages[: max(last, 0)]):
        if message.role in _STAY:
            continue
        if message.role == "user" or not groups:
            groups.append([])
        groups[-1].append(index)
    within: list[list[int]] = []
    for index, message in enumerate(messages[last + 1 :], last + 1):
        if message.role in _STAY:
            continue
        if message.role == "assistant" or not within:
            within.append([])
        within[-1].append(index)
    return groups + within[:-1]


def _without(chat: ChatOfResponse, groups: Sequence[Sequence[int]]) -> ChatOfResponse:
    gone = {index for group in groups for index in group}
    kept = [index for index in range(len(chat.places)) if index not in gone]
    messages = [chat.request.messages[index] for index in kept]
    request: ChatRequest = chat.request.model_copy(update={"messages": messages})
    return ChatOfResponse(request, [chat.places[index] for index in kept])
