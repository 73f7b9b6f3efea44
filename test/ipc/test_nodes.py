"""The connection between nodes: who knows the secret talks, who does not is refused, and both sides see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from lightllm.config import ServerConfig
from lightllm.errors import InvalidOption
from lightllm.ipc.channels import make_context
from lightllm.ipc.nodes import NodeConnection, NodeKeys, NodeListener, read_secret

SECRET = b"a secret that the nodes share"


@pytest.fixture
def context() -> Iterator[zmq.Context]:
    context = make_context()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def listener(context: zmq.Context) -> Iterator[NodeListener]:
    listener = NodeListener(context, "tcp://127.0.0.1:0", NodeKeys.derive(SECRET))
    yield listener
    listener.close()


def address(listener: NodeListener) -> str:
    return listener.socket.last_endpoint.decode()


def wait_for(what: Callable[[], object]) -> object:
    deadline = time.monotonic() + 10
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_who_knows_the_secret_is_heard_and_answered(context: zmq.Context, listener: NodeListener) -> None:
    node = NodeConnection(context, address(listener), NodeKeys.derive(SECRET))
    node.send(b"hello")
    connection, message = wait_for(listener.receive)  # type: ignore[misc]
    assert message == b"hello"
    assert listener.send(connection, b"welcome")
    assert wait_for(node.receive) == b"welcome"
    node.close()
    assert wait_for(lambda: listener.events()[1]) == 1
    assert wait_for(lambda: not listener.send(connection, b"are you there?"))


def test_a_probe_of_the_connection_is_no_message(context: zmq.Context, listener: NodeListener) -> None:
    node = NodeConnection(context, address(listener), NodeKeys.derive(SECRET))
    node.send(b"hello")
    connection, _ = wait_for(listener.receive)  # type: ignore[misc]
    for message in (b"", b"", b"welcome", b""):
        assert listener.send(connection, message)
    assert wait_for(node.receive) == b"welcome"
    assert node.receive() is None
    node.close()


def test_who_has_another_secret_is_refused_and_both_see_it(
    context: zmq.Context, listener: NodeListener
) -> None:
    stranger = NodeConnection(context, address(listener), NodeKeys.derive(b"another secret, a wrong one"))
    stranger.send(b"hello")
    assert wait_for(lambda: stranger.events()[0])
    assert wait_for(lambda: listener.events()[0])
    assert listener.receive() is None
    stranger.close()


def test_the_public_key_of_node_0_alone_is_not_enough(context: zmq.Context, listener: NodeListener) -> None:
    right, own = NodeKeys.derive(SECRET), NodeKeys.derive(b"another secret, a wrong one")
    mixed = NodeKeys(right.server_public, own.server_secret, own.client_public, own.client_secret)
    stranger = NodeConnection(context, address(listener), mixed)
    stranger.send(b"hello")
    assert wait_for(lambda: stranger.events()[0])
    assert listener.receive() is None
    stranger.close()


def test_a_message_after_the_refusal_is_lost_and_blocks_nobody(
    context: zmq.Context, listener: NodeListener
) -> None:
    right, own = NodeKeys.derive(SECRET), NodeKeys.derive(b"another secret, a wrong one")
    for keys in (own, NodeKeys(right.server_public, own.server_secret, own.client_public, own.client_secret)):
        stranger = NodeConnection(context, address(listener), keys)
        assert wait_for(lambda: stranger.events()[0])  # noqa: B023
        stranger.send(b"hello")
        assert listener.receive() is None
        stranger.close()


def test_a_connection_without_encryption_is_refused(context: zmq.Context, listener: NodeListener) -> None:
    plain = context.socket(zmq.DEALER)
    plain.connect(address(listener))
    plain.send(b"hello")
    assert wait_for(lambda: listener.events()[0])
    assert listener.receive() is None
    plain.close(linger=0)


def test_keys_do_not_show_in_messages() -> None:
    keys = NodeKeys.derive(SECRET)
    assert keys == NodeKeys.derive(SECRET) != NodeKeys.derive(SECRET + b"!")
    assert keys.server_secret.decode() not in repr(keys) and keys.client_secret.decode() not in repr(keys)


def test_the_secret_comes_from_a_file_or_the_environment(tmp_path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(SECRET + b"\n")
    config = ServerConfig(nnodes=2, tp=2, cluster_secret_file=str(file))
    assert read_secret(config, {}) == SECRET
    variables = {"LIGHTLLM_CLUSTER_SECRET": "from the environment, long"}
    assert read_secret(ServerConfig(nnodes=2, tp=2), variables) == b"from the environment, long"


@pytest.mark.parametrize(
    ("variables", "message"),
    [({}, "needs a secret"), ({"LIGHTLLM_CLUSTER_SECRET": "short"}, "has 5 characters, at least 16")],
)
def test_no_secret_or_a_short_one_is_an_error(variables: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        read_secret(ServerConfig(nnodes=2, tp=2), variables)


def test_a_missing_secret_file_is_named(tmp_path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(InvalidOption, match=f"{path} cannot be read: No such file"):
        read_secret(ServerConfig(nnodes=2, tp=2, cluster_secret_file=path), {})
