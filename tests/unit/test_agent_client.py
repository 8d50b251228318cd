"""Asking components that are slow, late, noisy, gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from coven.agents.client import AgentClient, AsyncAgentClient
from coven.agents.protocol import Answer, Request, decode_request, encode_answer
from coven.errors import CovenError

Reply = Callable[[socket.socket, Request], None]


class Peer:
    """A component played by a thread: `reply` is called for each request until it hangs up."""

    def __init__(self, reply: Reply) -> None:
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.thread = threading.Thread(target=self._run, args=(reply,))
        self.thread.start()

    def _run(self, reply: Reply) -> None:
        with self.far, contextlib.suppress(ConnectionError):
            while data := self.far.recv(65537):
                reply(self.far, decode_request(data))

    def close(self) -> None:
        self.near.close()
        self.thread.join(5)


@pytest.fixture
def peer() -> Iterator[Callable[[Reply], Peer]]:
    peers: list[Peer] = []

    def make(reply: Reply) -> Peer:
        peers.append(Peer(reply))
        return peers[-1]

    yield make
    for one in peers:
        one.close()


def echo(sock: socket.socket, request: Request) -> None:
    sock.send(encode_answer(Answer(request.id, (("result", "name", request.name), *request.lines))))


def noise(sock: socket.socket, request: Request) -> None:
    """Garbage, an empty datagram, an answer to the future, one to the past; then the answer."""
    for data in (b"\xff\xfe", b"", b"no id\tok\n", b"999\tok\n", b"0\tok\n", b"\tok\n"):
        sock.send(data)
    echo(sock, request)


@pytest.mark.parametrize("reply", [echo, noise])
def test_answer_arrives(peer: Callable[[Reply], Peer], reply: Reply) -> None:
    client = AgentClient(peer(reply).near)
    for name in ("one", "two"):
        assert client.ask("get", name) == (("result", "name", name),)


@pytest.mark.parametrize("reply", [echo, noise])
def test_async_answers_find_their_questions(peer: Callable[[Reply], Peer], reply: Reply) -> None:
    client = AsyncAgentClient(peer(reply).near)

    async def run() -> None:
        names = [str(i) for i in range(40)]
        answers = await asyncio.gather(*(client.ask("get", name, [("argument", "x", "y" * 9000)]) for name in names))
        assert [lines[0][2] for lines in answers] == names

    asyncio.run(run())


def late() -> Reply:
    """Never answers the first question in time, but before the answer to the second."""
    kept: list[Request] = []

    def reply(sock: socket.socket, request: Request) -> None:
        kept.append(request)
        if len(kept) > 1:
            for one in kept:
                echo(sock, one)

    return reply


def test_late_answer_does_not_confuse(peer: Callable[[Reply], Peer]) -> None:
    client = AgentClient(peer(late()).near)
    with pytest.raises(CovenError) as caught:
        client.ask("get", "first", timeout=0.05)
    assert caught.value.code == "component.not-answering"
    assert client.ask("get", "second") == (("result", "name", "second"),)


def test_async_late_answer_does_not_confuse(peer: Callable[[Reply], Peer]) -> None:
    client = AsyncAgentClient(peer(late()).near)

    async def run() -> None:
        with pytest.raises(CovenError) as caught:
            await client.ask("get", "first", timeout=0.05)
        assert caught.value.code == "component.not-answering"
        assert await client.ask("get", "second") == (("result", "name", "second"),)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("code", "expected"),
    [("unknown-name", "component.operation-unknown"), ("failed", "component.operation-failed"), ("bad-code", "component.bad-code")],
)  # fmt: skip
def test_error_answers_become_errors(peer: Callable[[Reply], Peer], code: str, expected: str) -> None:
    one = peer(
        lambda sock, request: sock.send(encode_answer(Answer(request.id, code=code, message="why not"))) and None
    )
    with pytest.raises(CovenError, match="why not") as caught:
        AgentClient(one.near, "component x").ask("call", "y")
    assert caught.value.code == expected
    assert "component x" in str(caught.value)


def test_answer_with_our_id_that_cannot_be_read(peer: Callable[[Reply], Peer]) -> None:
    one = peer(lambda sock, request: sock.send(b"%d\tperhaps\n" % request.id) and None)
    with pytest.raises(CovenError) as caught:
        AgentClient(one.near).ask("list")
    assert caught.value.code == "component.answer-malformed"

    async def run() -> None:
        with pytest.raises(CovenError) as caught:
            await AsyncAgentClient(one.near).ask("list")
        assert caught.value.code == "component.answer-malformed"

    asyncio.run(run())


def test_gone_component_is_noticed_at_once() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    far.close()
    with near:
        with pytest.raises(CovenError) as caught:
            AgentClient(near).ask("list", timeout=60)
        assert caught.value.code == "component.not-running"

        async def run() -> None:
            with pytest.raises(CovenError) as caught:
                await AsyncAgentClient(near).ask("list", timeout=60)
            assert caught.value.code == "component.not-running"

        asyncio.run(run())


def test_component_that_does_not_read_cannot_block_the_asker() -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with near, far:
        client = AgentClient(near)
        with pytest.raises(CovenError) as caught:
            for _ in range(1000):
                client.ask("get", "x" * 60000, timeout=0.02)
        assert caught.value.code == "component.not-answering"

        async def run() -> None:
            asker = AsyncAgentClient(near)
            outcomes = await asyncio.gather(
                *(asker.ask("get", "x" * 60000, timeout=0.05) for _ in range(20)),
                return_exceptions=True,
            )
            assert {error.code for error in outcomes if isinstance(error, CovenError)} == {"component.not-answering"}

        asyncio.run(run())


def test_flood_of_nonsense_ends_at_the_deadline(peer: Callable[[Reply], Peer]) -> None:
    stop = threading.Event()

    def flood(sock: socket.socket, request: Request) -> None:
        sock.settimeout(0.05)
        while not stop.is_set():
            try:
                sock.send(b"nonsense")
            except OSError:
                continue
        sock.settimeout(None)

    one = peer(flood)
    try:
        with pytest.raises(CovenError, match="ignored"):
            AgentClient(one.near).ask("get", timeout=0.1)
    finally:
        stop.set()
