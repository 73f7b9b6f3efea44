"""Random bodies of requests that strangers may send, as JSON texts: what every route takes, with some of it made wrong.

`body(rng)` gives (path, bytes). It begins with fields that are taken, and puts in the place of some what has another type, an
extreme value, too much of it, or no meaning at all. JSON is written here, not by a library: NaN, lone surrogates, fields that
come twice and nesting that no library writes are among it.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping

from support.drawn_images import encoded, halves, png_header
from support.hostile_constraints import representative
from support.parameter_fuzz import ALLOWED, NATIVE_ONLY, OPENAI_ALLOWED, OPENAI_NAMES, TOO_MUCH
from support.random_schemas import random_schema

Fields = dict[str, str]
"""Name of a field -> its JSON text."""


class Dice(random.Random):
    images = 0.1
    """Share of those requests with images that may have some."""


TEXTS = (
    "", " ", "a", "What is AI?", "Größe 🙂", "\0", "\x1b[31m", "a\r\nb: c", "\u202etxt.exe", "\u2028", "ﷺ" * 300, "e\u0301" * 500,
    "\U0010ffff", "<|im_start|>system", "<s></s><unk>", "{{ 7 * 7 }}", "{% for x in range(10 ** 9) %}x{% endfor %}",
    "__class__", "../../etc/passwd", "%s%n%x", "' OR 1=1 --", "x" * 5000, "(" * 500, "[[[[", "]]>", "NaN", "null", "0x10", "1_000",
    "data:image/png;base64,", "file:///etc/passwd", "http://127.0.0.1:1/", "http://[::ffff:169.254.169.254]/", "true",
)  # fmt: skip
LITERALS = (
    "null",
    "true",
    "false",
    "[]",
    "{}",
    '""',
    "[null]",
    '{"": null}',
    '"\\ud800"',
    "0",
    "-1",
    "1.5",
    "NaN",
    "-Infinity",
)
PICTURE = encoded(halves())
IMAGES = (
    PICTURE, PICTURE[:-9], png_header(100_000, 100_000), b"", b"<svg/>", b"GIF89a" + bytes(40), encoded(halves(1, 1)),
    encoded(halves(700, 3), "JPEG"), encoded(halves(), "WEBP"), b"\xff\xd8" + b"\xff\xda" * 200,
)  # fmt: skip
MANY_FIELDS = b"{" + b"".join(b'"%d":0,' % number for number in range(100_000))
UNKNOWN = (
    "chat_template", "cache_salt", "prompt_embeds", "lora_path", "bootstrap_host", "mm_processor_kwargs", "logits_processors",
    "session_params", "tokenize", "extra_body", "__proto__", "kv_transfer_params", "vllm_xargs", "Ω", "max_length", "x" * 300, "",
)  # fmt: skip
ATTACKS = [(field, text) for _, field, text in representative() if len(text) < 4000]


def junk(rng: Dice) -> str:
    """Any JSON text, or nearly JSON."""
    kind = rng.randrange(9)
    if kind < 2:
        return rng.choice(TOO_MUCH)
    if kind < 4:
        return json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5)
    if kind < 6:
        return rng.choice(LITERALS)
    if kind == 6:
        depth = rng.choice((3, 60, 130, 201, 1000, 20_000))
        start, end = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")))
        return start * depth + "1" + end * (depth - (rng.random() < 0.1))
    if kind == 7:
        return "[" + ",".join([rng.choice(LITERALS)] * rng.choice((2, 65, 1025, 5000))) + "]"
    return object_of({rng.choice(TEXTS)[:50]: rng.choice(LITERALS) for _ in range(rng.randint(1, 70))})


def object_of(fields: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in fields.items()) + "}"


def list_of(items: list[str]) -> str:
    return "[" + ",".join(items) + "]"


def _text(rng: Dice) -> str:
    return json.dumps(rng.choice(TEXTS), ensure_ascii=rng.random() < 0.5)


def _ids(rng: Dice) -> str:
    return json.dumps([rng.randrange(3, 256) for _ in range(rng.randint(1, 40))])


def _schema(rng: Dice) -> str:
    schema = json.dumps(random_schema(rng))
    return json.dumps(schema) if rng.random() < 0.3 else schema


def _constraint(rng: Dice) -> Fields:
    """By any of its names; some are attacks."""
    if rng.random() < 0.3:
        field, text = rng.choice(ATTACKS)
        return {field: json.dumps(text)}
    name = rng.choice(
        ("guided_json", "json_schema", "guided_regex", "regex", "guided_grammar", "ebnf", "guided_choice")
    )
    if name in ("guided_json", "json_schema"):
        return {name: _schema(rng)}
    if name == "guided_choice":
        return {name: json.dumps([rng.choice(TEXTS)[:40] for _ in range(rng.choice((1, 3, 1025)))])}
    if name in ("guided_grammar", "ebnf"):
        return {
            name: json.dumps(
                rng.choice(('root ::= "a" | "b" root', 'start: "a" /[b-d]{1,3}/', "root ::= root", "start:"))
            )
        }
    return {
        name: json.dumps(rng.choice(("[a-z]{1,9}", "(a|b)+c", "\\d{3}-\\d{4}", "(?<=a)b", "[", "a{1,99999}")))
    }


def _parameters(rng: Dice, native: bool) -> Fields:
    allowed = dict(ALLOWED)
    if not native:
        allowed = {OPENAI_NAMES.get(name, name): v for name, v in ALLOWED.items() if name not in NATIVE_ONLY}
        allowed |= OPENAI_ALLOWED
    fields = {name: rng.choice(allowed[name]) for name in rng.sample(sorted(allowed), rng.randint(0, 4))}
    fields["max_new_tokens" if native else "max_tokens"] = str(rng.randint(1, 12))
    if rng.random() < 0.15:
        fields |= _constraint(rng)
    return fields


def image(rng: Dice) -> str:
    """A URL."""
    if rng.random() < 0.2:
        return json.dumps(rng.choice(TEXTS))
    data = PICTURE if rng.random() < 0.5 else rng.choice(IMAGES)
    return json.dumps("data:image/png;base64," + base64.b64encode(data).decode())


def _images(rng: Dice, wanted: int = 1) -> str:
    """Mostly as many as are wanted."""

    def one() -> str:
        kind = rng.choice(("url", "url", "base64", "image_size", "video"))
        data = json.dumps([rng.choice((1, 28, 1 << 21)), 5]) if kind == "image_size" else image(rng)
        return object_of({"type": json.dumps(kind), "data": data})

    count = wanted if rng.random() < 0.8 else rng.choice((0, 2, 70))
    return object_of({"images": list_of([one() for _ in range(count)])})


def _generate(rng: Dice) -> Fields:
    if rng.random() < rng.images:
        markers = rng.choice((0, 1, 1, 2))
        text = "<image>" * markers + rng.choice(TEXTS)[:200]
        images = {"inputs": json.dumps(text), "multimodal_params": _images(rng, markers)}
        return images | {"parameters": object_of(_parameters(rng, True))}
    inputs = _text(rng) if rng.random() < 0.5 else _ids(rng)
    return {"inputs": inputs, "parameters": object_of(_parameters(rng, True))}


def _completion(rng: Dice) -> Fields:
    prompts = (
        _text,
        _ids,
        lambda rng: list_of([_text(rng)] * rng.randint(1, 4)),
        lambda rng: list_of([_ids(rng)] * 2),
    )
    fields = {"prompt": rng.choice(prompts)(rng), "stream": rng.choice(("true", "false"))}
    return (
        fields
        | _parameters(rng, False)
        | rng.choice(({}, {"echo": "true"}, {"logprobs": "5", "echo": "true"}))
    )


def _part(rng: Dice) -> str:
    kind = rng.choice(("text", "text", "image_url", "input_audio", "refusal", "thinking"))
    if rng.random() < rng.images:
        kind = "image_url"
    value = _text(rng) if kind != "image_url" else object_of({"url": image(rng)})
    return object_of({"type": json.dumps(kind), kind: value})


def _message(rng: Dice) -> str:
    content = (
        _text(rng) if rng.random() < 0.6 else list_of([_part(rng) for _ in range(rng.choice((0, 1, 3, 40)))])
    )
    role = rng.choice(("user", "user", "assistant", "system", "tool", "developer", "x" * 70))
    fields = {"role": json.dumps(role), "content": content}
    if role == "assistant" and rng.random() < 0.3:
        call = object_of({"name": '"f"', "arguments": rng.choice(('"{}"', '{"a": 1}', '"{"'))})
        fields["tool_calls"] = list_of([object_of({"id": '"c"', "type": '"function"', "function": call})])
    return object_of(fields)


_CHAT_FIELDS: dict[str, tuple[str, ...]] = {
    "response_format": ('{"type":"json_object"}', '{"type":"text"}', '{"type":"json_schema","json_schema":{"schema":{"type":"integer"}}}'),
    "tools": ('[{"type":"function","function":{"name":"f","parameters":{"type":"object"}}}]',),
    "tool_choice": ('"auto"', '"none"', '"required"'), "chat_template_kwargs": ('{"enable_thinking":false}', '{"tokenize":true}', '{"messages":1}'),
    "reasoning_effort": ('"low"', '"Ω"'), "logprobs": ("true",), "top_logprobs": ("3",), "n": ("2", "128", "129"),
    "continue_final_message": ("true",), "stream_options": ('{"include_usage":true}',), "user": ('"u"',),
    "structured_outputs": ('{"regex":"[ab]{2}"}', '{"choice":["a","b"]}', '{"json":{}}'),
}  # fmt: skip


def _chat(rng: Dice) -> Fields:
    messages = [_message(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
    fields = {"messages": list_of(messages), "stream": rng.choice(("true", "false"))} | _parameters(
        rng, False
    )
    for name in rng.sample(sorted(_CHAT_FIELDS), rng.randint(0, 3)):
        fields[name] = rng.choice(_CHAT_FIELDS[name])
    return fields


def _tokens(rng: Dice) -> Fields:
    return {"text": _text(rng)} | ({"multimodal_params": _images(rng)} if rng.random() < rng.images else {})


ROUTES: dict[str, tuple[int, Callable[[Dice], Fields]]] = {
    "/generate": (6, _generate), "/generate_stream": (6, _generate), "/v1/completions": (8, _completion),
    "/v1/chat/completions": (10, _chat), "/tokens": (3, _tokens), "/abort_request": (1, lambda rng: {"request_id": _text(rng)}),
    "/get_score": (1, lambda rng: {"chat": list_of([_message(rng)])}), "/v1/responses": (1, lambda rng: {"input": _text(rng)}),
    "/start_profile": (1, lambda rng: {"num_steps": rng.choice(TOO_MUCH)}), "/flush_cache": (1, lambda rng: {}),
}  # fmt: skip
"""Path -> how often it is chosen, and fields that it takes."""


def body(rng: Dice) -> tuple[str, bytes]:
    path = rng.choices(list(ROUTES), [share for share, _ in ROUTES.values()])[0]
    fields = ROUTES[path][1](rng)
    for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 3))):
        _spoil(rng, fields)
    text = object_of(fields)
    if rng.random() < 0.05 and fields:  # a field that comes twice
        text = text[:-1] + f",{json.dumps(rng.choice(list(fields)))}:{junk(rng)}}}"
    data = text.encode("utf-8", "surrogatepass")
    return path, _written(rng, data) if rng.random() < 0.1 else data


def _spoil(rng: Dice, fields: Fields) -> None:
    """One field becomes another thing, is left out, or is one that is not known."""
    if not fields or rng.random() < 0.2:
        fields[rng.choice(UNKNOWN)] = junk(rng)
        return
    name = rng.choice(list(fields))
    if rng.random() < 0.1:
        del fields[name]
    elif fields[name].startswith(("{", "[")) and rng.random() < 0.6:
        fields[name] = _spoilt_inside(rng, fields[name])
    else:
        fields[name] = junk(rng)


def _spoilt_inside(rng: Dice, text: str) -> str:
    """Something within an object or a list is replaced."""
    places = [i for i, sign in enumerate(text) if sign in ":,[" and i + 1 < len(text)][:200]
    if not places:
        return junk(rng)
    start = rng.choice(places) + 1
    end = start
    while end < len(text) and text[end] not in ",]}":
        end += 1
    return text[:start] + junk(rng) + text[end:]


def _written(rng: Dice, data: bytes) -> bytes:
    """What else may stand for, or around, a JSON text."""
    cut = rng.randrange(len(data) + 1)
    return rng.choice(
        (
            data[:cut], data + b"{}", b"\xef\xbb\xbf" + data, data.decode(errors="replace").encode("utf-16"), b" \n\t" * 300 + data,
            data[:cut] + b"\xff" + data[cut:], b"\x1f\x8b" + data, b"", b"\0" * 50, b"[" + data + b"]", b"'" + data + b"'",
            b"1" * 5000, b'{"inputs":"' + b"x" * 300_000 + b'"}', b'{"prompt":[' + b"7," * 150_000 + b"7]}",
            b'{"a":' + b"[" * 140_000 + b"]" * 140_000 + b"}", MANY_FIELDS + data[1:], b"{" + MANY_FIELDS[1:] * 2 + data[1:],
            b'{"messages":[{"role":"user","content":[' + b'{"type":"text","text":"x"},' * 2000 + b'"x"]}]}',
        )
    )  # fmt: skip
