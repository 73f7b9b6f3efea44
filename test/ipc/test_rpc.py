"""rpyc as plain request and response: nothing but `call` can be reached from outside."""

import os

import pytest
import rpyc

from lightllm.ipc.rpc import RpcClient, RpcError, RpcServer
from lightllm.protocol import codec
from lightllm.protocol.control import Attach, Command, ModelReady


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "control")


@pytest.fixture
def server(path):
    def attach(payload: bytes) -> bytes:
        request = codec.Decoder(Attach).decode(payload)
        return codec.encode(ModelReady(request.rank, request.epoch, "float32", "cpu", {"all": 1.0}))

    def fail(payload: bytes) -> bytes:
        raise ValueError("no such luck")

    server = RpcServer(path, {"attach": attach, "fail": fail, "nothing": lambda payload: b""})
    yield server
    server.close()


def test_call_sends_and_returns_messages(server, path):
    client = RpcClient(path)
    ready = client.call("attach", Attach(4, 3, b"{}"), ModelReady)
    assert (ready.max_total_token_num, ready.vocab_size, ready.seconds) == (3, 4, {"all": 1.0})
    assert client.call("nothing", None, None) is None
    client.close()


def test_an_error_of_the_handler_reaches_the_caller_as_text_and_the_server_lives(server, path):
    client = RpcClient(path)
    with pytest.raises(RpcError, match="ValueError: no such luck"):
        client.call("fail", Command("stop"), None)
    with pytest.raises(RpcError, match="KeyError"):
        client.call("unknown", None, None)
    with pytest.raises(RpcError, match="ValidationError"):
        client.call("attach", Command("stop"), ModelReady)
    assert client.call("nothing", None, None) is None
    client.close()


@pytest.mark.parametrize("name", ["__class__", "__dict__", "_conn", "on_connect", "handlers"])
def test_internals_of_the_service_cannot_be_reached(server, path, name):
    connection = rpyc.connect_channel(rpyc.Channel(rpyc.SocketStream.unix_connect(path)))
    if name == "__class__":  # rpyc answers this one locally, with a class of its own
        assert not hasattr(connection.root, "mro")
    else:
        with pytest.raises(AttributeError):
            connection.root.__getattr__(name) if name != "__dict__" else connection.root.__dict__["x"]
    with pytest.raises(AttributeError):
        connection.root.call.__globals__  # noqa: B018
    connection.close()


def test_nothing_is_unpickled(server, path):
    connection = rpyc.connect_channel(rpyc.Channel(rpyc.SocketStream.unix_connect(path)))
    with pytest.raises(Exception, match="pickl"):
        rpyc.classic.obtain(connection.root.call)
    connection.close()


def test_the_socket_file_can_be_connected_to_as_soon_as_it_exists_and_goes_with_the_server(path):
    server = RpcServer(path, {"nothing": lambda payload: b""})
    client = RpcClient(path)
    assert client.call("nothing", None, None) is None
    client.close()
    server.close()
    assert not os.path.exists(path)


def test_a_lost_server_is_an_end_of_file(path):
    server = RpcServer(path, {"die": lambda payload: server.close() or b""})
    client = RpcClient(path)
    with pytest.raises(EOFError):
        client.call("die", None, None)
        client.call("die", None, None)
