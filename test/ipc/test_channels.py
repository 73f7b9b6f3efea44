"""ZMQ channels: order, no blocking, dead generations, malformed frames."""

import asyncio
import struct

import msgspec
import pytest
import zmq

from lightllm.ipc.channels import EVERY_EPOCH, Epoch, PullChannel, PushChannel, make_context
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
    push = PushChannel(context, address, Epoch(0))
    for number in range(5000):
        push.send(AbortRequest(number))
    pull = PullChannel(context, address, codec.to_router, Epoch(0))
    assert receive_all(pull, 5000) == list(range(5000))
    assert pull.receive() is None


def test_send_bytes_is_the_same_as_send(context, address):
    pull = PullChannel(context, address, codec.to_router, Epoch(0))
    push = PushChannel(context, address, Epoch(0))
    push.send_bytes(codec.encode(AbortRequest(7, "timeout")))
    assert pull.wait(5000)
    data = pull.receive_bytes()
    assert pull.decode(data) == AbortRequest(7, "timeout")


def test_what_an_earlier_epoch_has_sent_is_dropped(context, address):
    receiver, sender = Epoch(2), Epoch(1)
    pull = PullChannel(context, address, codec.to_router, receiver)
    old, new = PushChannel(context, address, sender), PushChannel(context, address, Epoch(2))
    old.send(AbortRequest(1))
    new.send(AbortRequest(2))
    assert receive_all(pull, 1) == [2]
    new.send(AbortRequest(3))  # is on its way when the receiver learns of the next epoch
    receiver.raise_to(3)
    sender.raise_to(3)
    old.send(AbortRequest(4))
    assert receive_all(pull, 1) == [4]
    lasting = PushChannel(context, address, EVERY_EPOCH)
    lasting.send(AbortRequest(5))
    receiver.raise_to(4)
    assert receive_all(pull, 1) == [5]


def test_a_malformed_message_raises_and_a_short_frame_is_dropped(context, address):
    pull = PullChannel(context, address, codec.to_router, Epoch(0))
    raw = context.socket(zmq.PUSH)
    raw.connect(address)
    raw.send(b"abc")
    raw.send(struct.pack("<I", 0) + b"\xc1 not msgpack")
    assert pull.wait(5000)
    with pytest.raises(msgspec.MsgspecError):
        while pull.receive() is None:
            assert pull.wait(5000)


def test_wait_times_out_without_a_message(context, address):
    assert PullChannel(context, address, codec.to_router, Epoch(0)).wait(1) is False


def test_an_event_loop_gets_every_message(context, address):
    """The descriptor is edge-triggered: messages that arrive together give one wake-up."""

    async def main() -> list[int]:
        pull = PullChannel(context, address, codec.to_router, Epoch(0))
        push = PushChannel(context, address, Epoch(0))
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
    push = PushChannel(context, address, Epoch(0))
    push.send(AbortRequest(1))
    push.close()
    context.term()
