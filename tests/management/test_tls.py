"""TLS as soon as the agent can be reached from other machines."""

from __future__ import annotations

import http.client
import socket
import ssl
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.management import tls
from coven.management.__main__ import TCP_THREADS
from tests.lib.agent import Agent, running
from tests.lib.rest import Rest
from tests.lib.standin import StandIn
from tests.management.test_rest import asks_in_time


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    """An agent that listens at all addresses."""
    made = Agent(tmp_path, listen=("0.0.0.0:0", "127.0.0.1:0"))
    supervisor = StandIn(made.run / "supervisor.sock")
    supervisor.start()
    with running(made):
        yield made
    supervisor.stop()


def secure(agent: Agent) -> tuple[tuple[str, int], ssl.SSLContext]:
    """Give the address of the TLS listener and a context that trusts its certificate, and no other."""
    line = next(line for line in agent.output if "https://" in line)
    port = int(line.rsplit(":", 1)[1])
    context = ssl.create_default_context(cafile=agent.state / "tls" / "certificate.pem")
    return ("127.0.0.1", port), context


def test_beyond_loopback_speaks_tls(agent: Agent) -> None:
    address, context = secure(agent)
    rest = Rest(address=address, token=agent.token, context=context)
    assert rest.call("GET", "/v1").status == 200
    assert Rest(address=address, context=context).call("GET", "/v1").code == "auth.missing"
    assert any(line.startswith("listening at http://127.0.0.1:") for line in agent.output)


def test_the_key_is_private_and_stays_the_same(agent: Agent) -> None:
    key = agent.state / "tls" / "agent.pem"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    before = key.read_bytes()
    told = [line for line in agent.output if line.startswith("certificate:")]
    agent.stop()
    agent.start()
    assert key.read_bytes() == before
    assert [line for line in agent.output if line.startswith("certificate:")] == told


def test_plain_http_and_old_tls_get_nothing(agent: Agent) -> None:
    address, context = secure(agent)
    with pytest.raises((http.client.HTTPException, ConnectionError)):
        Rest(address=address, token=agent.token).call("GET", "/v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError), socket.create_connection(address, timeout=20) as plain:
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_silent_tls_clients_stall_nobody(agent: Agent) -> None:
    address, context = secure(agent)
    silent = [socket.create_connection(address, timeout=20) for _ in range(60)]
    for client in silent[:8]:
        client.sendall(b"\x16\x03\x01")  # a handshake begins
    assert asks_in_time(Rest(address=address, token=agent.token, context=context))
    for client in silent:
        client.close()


def test_who_waits_for_slow_clients_is_served_after_them(agent: Agent) -> None:
    """More begin a handshake and stop than there are threads: they are cut, not those behind them."""
    address, context = secure(agent)
    slow = [socket.create_connection(address, timeout=20) for _ in range(TCP_THREADS + 4)]
    for client in slow:
        client.sendall(b"\x16\x03\x01")
    assert asks_in_time(Rest(address=address, token=agent.token, context=context))
    for client in slow:
        client.close()


def test_a_certificate_that_ends_soon_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "VALID_DAYS", tls.RENEW_DAYS - 1)
    first = tls.ensure_certificate(tmp_path / "tls", ["192.0.2.1", "appliance.example"])
    monkeypatch.undo()
    second = tls.ensure_certificate(tmp_path / "tls", ["192.0.2.1"])
    third = tls.ensure_certificate(tmp_path / "tls", ["192.0.2.1"])
    assert first[2] != second[2] == third[2]


def test_a_damaged_certificate_is_made_anew(tmp_path: Path) -> None:
    first = tls.ensure_certificate(tmp_path / "tls", ["192.0.2.1"])
    first[1].write_bytes(b"\x00" * 100)
    second = tls.ensure_certificate(tmp_path / "tls", ["192.0.2.1"])
    assert first[2] != second[2]
    tls.server_context(second[1])


def test_what_is_loopback() -> None:
    assert all(map(tls.is_loopback, ("127.0.0.1", "::1", "localhost", "127.9.9.9")))
    assert not any(map(tls.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "appliance", "")))  # noqa: S104


def test_lists_of_files_stay_small(agent: Agent) -> None:
    """Connections that went away do not stay open."""
    address, _ = secure(agent)
    before = len(list(Path(f"/proc/{agent.pid}/fd").iterdir()))
    for _ in range(50):
        socket.create_connection(address, timeout=20).close()
    rest = agent.rest()
    for _ in range(50):  # each is a turn of the listener's loop
        rest.get("/v1/packages")
        if len(list(Path(f"/proc/{agent.pid}/fd").iterdir())) <= before + 2:
            return
    pytest.fail("descriptors are left open")
