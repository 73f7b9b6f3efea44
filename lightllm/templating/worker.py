"""Main loop of a template child: `python -m lightllm.templating.worker`, with a socket as its standard input.

A template that never ends is ended by the kernel: a timer of processor time whose signal ends the process. Memory is bounded
by the address space. When the server is gone the socket says so, and the child ends after at most one more rendering.
"""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
from pathlib import Path
from typing import Any, NamedTuple

from lightllm.errors import InvalidParameter
from lightllm.templating import wire
from lightllm.templating.conversation import Conversations
from lightllm.templating.limits import Limits
from lightllm.templating.template import Template
from lightllm.templating.traits import Traits, find_traits


class _Loaded(NamedTuple):
    template: Template
    traits: Traits
    conversations: Conversations


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    at_start, (_, most) = _address_space(), resource.getrlimit(resource.RLIMIT_AS)
    loaded: dict[str, _Loaded] = {}
    # The process that waited for the answer may be gone, killed at any moment: that is no news, and no traceback for the log.
    with socket.socket(fileno=0) as channel, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        while (data := wire.receive(channel)) is not None:
            asked = wire.decode(data)
            limits = Limits(**asked.pop("limits"))
            memory = at_start + limits.memory_bytes(len(data))
            del data
            resource.setrlimit(resource.RLIMIT_AS, (_lower(memory, most), most))
            signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
            answer = _answer(loaded, asked)
            signal.setitimer(signal.ITIMER_PROF, 0)
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            wire.send(channel, answer)


def _answer(loaded: dict[str, _Loaded], asked: dict[str, Any]) -> bytes:
    try:
        if asked["task"] == "load":
            template = Template(asked["source"])
            traits = find_traits(template)
            loaded[asked["name"]] = _Loaded(template, traits, Conversations(template, traits))
            return wire.encode({})
        return wire.encode(_rendered(loaded[asked["name"]], asked))
    except InvalidParameter as error:
        return wire.encode({"error": error.message, "param": error.param})
    except MemoryError:
        return wire.encode({"out_of_memory": True})


def _rendered(loaded: _Loaded, asked: dict[str, Any]) -> dict[str, Any]:
    template, traits, conversations = loaded
    context = {**asked["variables"], "tools": asked["tools"], "add_generation_prompt": asked["open_answer"]}
    if asked["tools"] is not None and not traits.tools:
        raise InvalidParameter(
            "the model's chat template does not render tools, so the model would never see them; leave them out, or start "
            "the server with a template that does (--chat_template FILE)",
            param="tools",
        )
    for name in asked["must_read"]:
        if template.names.isdisjoint(name.split("|")):
            first = name.split("|")[0]
            raise InvalidParameter(
                f"{first}: the model's chat template does not read it, so it would have no effect",
                param=first,
            )
    messages = conversations.arrange(asked["messages"], context, asked["image_marker"])
    render = template.render_open if asked["continued"] else template.render
    unread = sorted(name for name in asked["variables"] if name not in template.names)
    return {"text": render(messages, context), "unread": unread}


def _lower(memory: int, most: int) -> int:
    """A limit that is allowed where the server was started with one of its own (`ulimit -v`)."""
    return memory if most == resource.RLIM_INFINITY else min(memory, most)


def _address_space() -> int:
    """bytes"""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
