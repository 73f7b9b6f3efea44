"""ZMQ channels: order, no blocking, dead generations, malformed frames."""

import asyncio
import struct

import msgspec
import pytest
import zmq

from lightllm.ipc.channels import PullChannel, PushChannel, make_context
from lightllm.protocol import codec
from lightllm.protocol.messages import AbortRequest


@pytest.fixture
def context():
    context = make_context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def address(tmp_path):
    return f"ipc://{tmp_path}/socket"


def receive_all(channel: PullChannel, count: int) -> list[int]:
    ids = []
    while len(ids) < count:
        assert channel.wait(5000)
        while (message := channel.receive()) is not None:
            ids.append(message.request_id)
    return ids


def test_messages_sent_before_the_receiver_exists_arrive_in_order(context, address):
    push = PushChannel(context, address)
    for number in range(5000):
        push.send(AbortRequest(number))
    pull = PullChannel(context, address, codec.to_router)
    assert receive_all(pull, 5000) == list(range(5000))
    assert pull.receive() is None


def test_send_bytes_is_the_same_as_send(context, address):
    pull = PullChannel(context, address, codec.to_router)
    push = PushChannel(context, address)
    push.send_bytes(codec.encode(AbortRequest(7, "timeout")))
    assert pull.wait(5000)
    data = pull.receive_bytes()
    assert pull.decode(data) == AbortRequest(7, "timeout")


def test_frames_of_a_dead_generation_are_dropped(context, address):
    pull = PullChannel(context, address, codec.to_router, min_epoch=2)
    old, new = PushChannel(context, address, epoch=1), PushChannel(context, address, epoch=2)
    old.send(AbortRequest(1))
    new.send(AbortRequest(2))
    assert receive_all(pull, 1) == [2]
    pull.min_epoch = 3
    newest = PushChannel(context, address, epoch=3)
    new.send(AbortRequest(3))
    newest.send(AbortRequest(4))
    assert receive_all(pull, 1) == [4]


def test_a_malformed_message_raises_and_a_short_frame_is_dropped(context, address):
    pull = PullChannel(context, address, codec.to_router)
    raw = context.socket(zmq.PUSH)
    raw.connect(address)
    raw.send(b"abc")
    raw.send(struct.pack("<I", 0) + b"\xc1 not msgpack")
    assert pull.wait(5000)
    with pytest.raises(msgspec.MsgspecError):
        while pull.receive() is None:
            assert pull.wait(5000)


def test_wait_times_out_without_a_message(context, address):
    assert PullChannel(context, address, codec.to_router).wait(1) is False


def test_an_event_loop_gets_every_message(context, address):
    """The descriptor is edge-triggered: messages that arrive together give one wake-up."""

    async def main() -> list[int]:
        pull = PullChannel(context, address, codec.to_router)
        push = PushChannel(context, address)
        push.send(AbortRequest(0))
        got: list[int] = []
        done = asyncio.Event()

        def take(message):
            got.append(message.request_id)
            if len(got) % 100 == 1:
                for number in range(len(got), len(got) + 100):
                    push.send(AbortRequest(number))
            if len(got) >= 1000:
                done.set()

        pull.on_message(asyncio.get_running_loop(), take)
        await asyncio.wait_for(done.wait(), 10)
        asyncio.get_running_loop().remove_reader(pull.socket.getsockopt(zmq.FD))
        return got

    got = asyncio.run(main())
    assert got == list(range(len(got)))


def test_closing_does_not_wait_for_an_absent_peer(address):
    context = make_context()
    push = PushChannel(context, address)
    push.send(AbortRequest(1))
    push.close()
    context.term()
