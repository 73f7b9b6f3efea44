"""Every message equals what is decoded from its bytes; broken bytes raise the one documented error."""

from __future__ import annotations

import types
import typing
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightllm.protocol import codec, control, images, messages, rounds
from lightllm.protocol.arrays import encode_array

UNIONS = {
    "to_router": messages.ToRouter,
    "to_detokenizer": messages.ToDetokenizer,
    "to_http": messages.ToHttp,
    "to_visual": images.ToVisual,
    "to_backend": rounds.ToBackend,
    "from_backend": rounds.RoundResult,
}
MEMBERS = [
    (decoder, kind) for decoder, union in UNIONS.items() for kind in (typing.get_args(union) or (union,))
]
CONTROL = [control.Attach, control.ModelReady, control.Status, control.Command]
CONTROL += [
    images.Hold,
    images.HeldItems,
    images.Full,
    images.Introduce,
    images.Welcome,
    images.ItemIds,
    images.CacheStats,
]
INTS = st.integers(-(2**63), 2**64 - 1)
ARRAYS = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5).map(lambda v: np.array(v, np.int32)),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(lambda v: np.array(v, np.float32)),
    st.lists(st.integers(0, 255), max_size=4).map(lambda v: np.array(v, np.uint8)),
    st.integers(0, 3).map(lambda n: np.zeros((n, 2), np.int64)),
)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotated type that occurs in messages."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    simple = {
        int: INTS, float: st.floats(allow_nan=False), str: st.text(max_size=8), bytes: st.binary(max_size=8),
        bool: st.booleans(), type(None): st.none(), np.ndarray: ARRAYS,
    }  # fmt: skip
    if kind in simple:
        return simple[kind]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(argument) for argument in arguments])
    if origin is typing.Annotated:
        return values(arguments[0])
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if origin is tuple:
        return st.tuples(*[values(argument) for argument in arguments])
    if issubclass(kind, msgspec.Struct):
        fields = msgspec.structs.fields(kind)
        return st.builds(kind, **{field.name: values(field.type) for field in fields})
    raise TypeError(f"no strategy for {kind}")


def assert_same(left: Any, right: Any) -> None:
    assert type(left) is type(right)
    if isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        assert left.tobytes() == right.tobytes()
    elif isinstance(left, msgspec.Struct):
        for field in left.__struct_fields__:
            assert_same(getattr(left, field), getattr(right, field))
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    else:
        assert left == right


@pytest.mark.parametrize(("decoder", "kind"), MEMBERS, ids=lambda v: getattr(v, "__name__", v))
def test_a_message_survives_its_channel(decoder, kind):
    @settings(max_examples=30, deadline=None)
    @given(values(kind))
    def check(message):
        assert_same(getattr(codec, decoder).decode(codec.encode(message)), message)

    check()


@pytest.mark.parametrize("kind", CONTROL, ids=lambda kind: kind.__name__)
def test_a_control_message_survives_msgpack(kind):
    @settings(max_examples=30, deadline=None)
    @given(values(kind))
    def check(message):
        assert codec.Decoder(kind).decode(codec.encode(message)) == message

    check()


@pytest.mark.parametrize("kind", [control.Status, control.Command], ids=lambda kind: kind.__name__)
def test_what_goes_over_the_supervisors_channel_is_one_line_of_json(kind):
    @settings(max_examples=30, deadline=None)
    @given(values(kind))
    def check(message):
        if kind is control.Status:
            finite = {name: s for name, s in message.seconds.items() if abs(s) < float("inf")}
            message = msgspec.structs.replace(message, seconds=finite)
        line = msgspec.json.encode(message)
        assert b"\n" not in line
        assert msgspec.json.decode(line, type=kind) == message

    check()


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200), st.sampled_from(sorted(UNIONS)))
def test_arbitrary_bytes_raise_only_the_documented_error(data, decoder):
    try:
        getattr(codec, decoder).decode(data)
    except msgspec.MsgspecError:
        return


def test_text_that_is_not_utf_8_is_a_message_error():
    data = codec.encode(messages.Refused([1], "error", "xyz")).replace(b"xyz", b"x\xff\xfe")
    with pytest.raises(msgspec.MsgspecError):
        codec.to_http.decode(data)


@pytest.mark.parametrize(
    "array",
    [["<i4", [3], b"1234"], ["|O", [1], b"12345678"], ["<i4", [-1, -1], b""], ["<i4", "x", b""], [1], {}, None],
    ids=str,
)  # fmt: skip
def test_a_broken_array_is_a_message_error(array):
    data = msgspec.msgpack.encode(["add", array, {}, []])
    with pytest.raises(msgspec.MsgspecError):
        codec.to_router.decode(data)


def test_arrays_outside_the_allow_list_cannot_be_sent():
    with pytest.raises(TypeError, match="complex128"):
        encode_array(np.zeros(1, np.complex128))
    with pytest.raises(TypeError):
        encode_array(object())


def test_decoded_arrays_are_read_only():
    request = messages.AddRequest(np.arange(3, dtype=np.int32), messages.SamplingParams(), [])
    decoded = codec.to_router.decode(codec.encode(request))
    with pytest.raises(ValueError, match="read-only"):
        decoded.prompt_ids[0] = 1


def test_the_worker_of_a_request_is_part_of_its_id():
    assert messages.worker_of(messages.make_request_id(3, 12345)) == 3
