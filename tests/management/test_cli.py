"""The command `coven` as a person types it: output, JSON and exit status."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.agent import Agent
from tests.lib.standin import StandIn

ROOT = Path(__file__).parents[2]
PASSTHROUGH = ROOT / "packages" / "passthrough"
PORTS = ("--port", "lan=gen:packets=0", "--port", "wan=gen")  # the second as short as can be


def coven(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("COVEN_")}
    return subprocess.run(
        [sys.executable, "-m", "coven", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**env, **environment},
    )


def at(agent: Agent, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command against an agent."""
    return coven("--socket", agent.socket, *words)


def test_from_a_folder_to_nothing(agent: Agent) -> None:
    done = at(agent, "deploy", PASSTHROUGH, "--id", "fw", *PORTS)
    assert done.returncode == 0, done.stderr
    assert "passthrough-1.0.0 is uploaded" in done.stdout and "fw is started" in done.stdout
    again = at(agent, "deploy", PASSTHROUGH, *PORTS, "--grant", "*=shared", "--json")
    assert again.returncode == 0, again.stderr  # the same content is there already
    assert json.loads(again.stdout)["instance"] == "passthrough-1"
    status = at(agent, "status")
    assert "passthrough-1" in status.stdout and "lan=gen" in status.stdout
    assert json.loads(at(agent, "status", "--json").stdout)["instances"][0]["id"] == "fw"
    assert "passthrough-1.0.0" in at(agent, "packages").stdout
    assert "package.in-use" in at(agent, "delete", "passthrough-1.0.0").stderr
    for instance in ("fw", "passthrough-1"):
        assert at(agent, "stop", instance).stdout == f"{instance} is stopped\n"
        assert at(agent, "terminate", instance).returncode == 0
    assert at(agent, "delete", "passthrough-1.0.0").stdout == "passthrough-1.0.0 is deleted\n"
    assert "package-deleted" in at(agent, "events").stdout
    assert at(agent, "operations").stdout.count("succeeded") == 6


def test_workers_are_asked_for(held: tuple[Agent, StandIn]) -> None:
    agent, supervisor = held
    words = ("--workers", "3", "--cores", "1-2,5", "--component-cores", "0", "--profile", "low-latency", "--no-wait")
    done = at(agent, "deploy", PASSTHROUGH, "--id", "fw", *PORTS, *words)
    assert done.returncode == 0, done.stderr
    plan = next(request["plan"] for request in supervisor.requests if request.get("verb") == "deploy")
    assert plan["worker"] == {"cores": [1, 2, 5], "profile": "low-latency", "component_cores": [0]}
    for cores in ("x", "3-1", "0-100000000", "-1", "1,,2"):
        done = at(agent, "deploy", PASSTHROUGH, *PORTS, f"--cores={cores}")
        assert done.returncode == 2 and "--cores" in done.stderr, done.stderr


def test_what_is_no_package_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.coven").write_text("no archive")
    done = coven("validate", tmp_path / "x.coven")
    assert done.returncode == 1 and f"coven: {tmp_path}/x.coven: this is no zip archive" in done.stderr


def test_a_place_is_said_once(agent: Agent) -> None:
    done = at(agent, "deploy", PASSTHROUGH, "--port", "lan=gen")
    assert "coven: port wan is not bound [binding.missing]" in done.stderr, done.stderr


def test_a_failed_deployment(held: tuple[Agent, StandIn]) -> None:
    agent, supervisor = held
    command = [sys.executable, "-m", "coven", "--socket", agent.socket, "deploy", PASSTHROUGH, *PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        supervisor.wait_for(lambda: bool(supervisor.asked("execute")))
        operation = supervisor.asked("execute")[0]["operation"]
        supervisor.wait_for(lambda: operation in supervisor.operations)
        supervisor.step(operation, "memory", "done")
        error = {"code": "component.compile-failed", "message": "no", "where": {"file": "a.c", "line": 3}}
        supervisor.end(operation, "rolled-back", error)
        out, text = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "done        memory" in out
    assert "a.c:3: deploy of passthrough-1 failed, everything was undone: no [component.compile-failed]" in text


def test_by_url_and_token(agent: Agent) -> None:
    url = "http://{}:{}".format(*agent.address())
    assert coven("status", COVEN_URL=url, COVEN_TOKEN=agent.token).returncode == 0
    assert coven("--url", url, "--token", agent.token, "status").returncode == 0
    refused = coven("--url", url, "status")
    assert refused.returncode == 1 and "auth.missing" in refused.stderr
    bad = coven("--url", "ftp://x", "status")
    assert bad.returncode == 1 and "request.malformed" in bad.stderr


def test_without_an_agent(tmp_path: Path) -> None:
    done = coven("--socket", tmp_path / "none.sock", "status")
    assert done.returncode == 3
    assert "agent.unreachable" in done.stderr and "coven agent" in done.stderr


def test_a_platform_without_an_agent_yet(tmp_path: Path) -> None:
    """What the folder holds may be anything."""
    with socket.socket(socket.AF_UNIX) as supervisor:
        supervisor.bind(str(tmp_path / "supervisor.sock"))
        supervisor.listen()
        for words in (None, "", "[]", '{"message": 1, "hint": []}', '{"message": "\\u001b[2J no\\nmore"}', "[" * 9000):
            if words is not None:
                (tmp_path / "agent.error").write_text(words)
            done = coven("--socket", tmp_path / "agent.sock", "status")
            assert done.returncode == 3 and "agent.unreachable" in done.stderr and "\x1b" not in done.stderr
            assert "every few seconds" in done.stderr and "start it with" not in done.stderr
    gone = coven("--socket", tmp_path / "agent.sock", "status")
    assert "start it with" in gone.stderr


def test_a_second_agent_is_refused(agent: Agent, tmp_path: Path) -> None:
    done = coven("agent", "--run-dir", agent.run, "--state-dir", agent.state)
    assert done.returncode == 1 and "agent.running" in done.stderr


@pytest.mark.parametrize("words", [(), ("nothing",), ("deploy",), ("deploy", "x", "--port", "lan")])
def test_wrong_usage(words: tuple[str, ...]) -> None:
    done = coven(*words)
    assert done.returncode == 2 and "usage: coven" in done.stderr


def test_not_well_is_exit_status_4(agent: Agent, held: tuple[Agent, StandIn]) -> None:
    _, supervisor = held
    supervisor.stop()
    done = at(held[0], "status")
    assert done.returncode == 4 and "problem:" in done.stdout


def test_validate_shows_every_fault_with_its_place(tmp_path: Path) -> None:
    assert coven("validate", PASSTHROUGH).returncode == 0
    made = coven("package", "build", PASSTHROUGH, "-o", tmp_path, "--json")
    archive = Path(json.loads(made.stdout)["file"])
    assert json.loads(coven("validate", archive, "--json").stdout)["id"] == "passthrough-1.0.0"
    assert coven("validate", PASSTHROUGH / "vnfc" / "forward" / "component.yaml").returncode == 0
    text = (PASSTHROUGH / "vnf.yaml").read_text()
    broken = tmp_path / "vnf.yaml"
    broken.write_text(text.replace("summary: one side", "sumary: one side").replace("bypass", "byebye"))
    done = coven("validate", broken)
    assert done.returncode == 1
    lines = text.splitlines()
    for part in ("summary: one side", "bypass"):
        number = next(i for i, line in enumerate(lines, 1) if part in line)
        assert f"vnf.yaml:{number}:" in done.stderr, done.stderr
    assert json.loads(coven("validate", broken, "--json").stdout)["valid"] is False


def test_the_command_is_quick_to_load() -> None:
    """Nothing heavy is imported for a command that only asks."""
    code = (
        "import sys; from coven.cli.main import make_parser; make_parser();"
        "print([m for m in ('scapy', 'jsonschema', 'rich', 'cryptography', 'yaml', 'requests', 'bottle')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
