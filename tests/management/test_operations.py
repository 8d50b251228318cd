"""Operations held open by a stand-in for the supervisor: two at once, wrong states, waiting, crashes."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from tests.lib.agent import Agent
from tests.lib.rest import Rest
from tests.lib.standin import Refusal, StandIn
from tests.management.conftest import PORTS
from tests.management.test_rest import create, left_behind, upload

ERROR = {"code": "component.compile-failed", "message": "forward.c:3: error", "hint": "mend it"}


@pytest.fixture
def deployed(held: tuple[Agent, StandIn], archive: Path) -> tuple[Agent, StandIn, Rest]:
    """A started instance `fw`."""
    agent, supervisor = held
    rest = agent.rest()
    operation = create(rest, upload(rest, archive), id="fw").json
    supervisor.end(operation["id"])
    assert rest.get(f"/v1/operations/{operation['id']}?wait=20")["state"] == "succeeded"
    return agent, supervisor, rest


def test_a_second_operation_is_refused(deployed: tuple[Agent, StandIn, Rest]) -> None:
    _, supervisor, rest = deployed
    first = rest.call("POST", "/v1/instances/fw/stop")
    for verb in ("start", "stop", "restart", "heal", "terminate"):
        answer = rest.call("POST", f"/v1/instances/fw/{verb}")
        assert (answer.status, answer.code) == (409, "instance.busy")
    assert rest.get("/v1/instances/fw")["operation"] == first.json["id"]
    supervisor.end(first.json["id"])
    assert rest.finish(first)["state"] == "succeeded"
    assert rest.get("/v1/instances/fw")["desired"] == "stopped"
    assert rest.call("POST", "/v1/instances/fw/start").status == 202


def test_only_one_of_many_at_once_is_taken(deployed: tuple[Agent, StandIn, Rest]) -> None:
    agent, supervisor, _ = deployed
    statuses: list[int] = []

    def stop() -> None:
        statuses.append(agent.rest().call("POST", "/v1/instances/fw/stop").status)

    threads = [threading.Thread(target=stop) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(statuses) == [202] + [409] * 7
    assert len([asked for asked in supervisor.asked("execute") if asked["verb"] == "stop"]) == 1


@pytest.mark.parametrize(
    ("state", "refused"),
    [
        ("started", {"start", "terminate"}),
        ("stopped", {"stop", "restart"}),
        ("instantiated", {"stop", "restart"}),
    ],
)
def test_verbs_in_the_wrong_state(
    deployed: tuple[Agent, StandIn, Rest], state: str, refused: set[str]
) -> None:
    _, supervisor, rest = deployed
    supervisor.auto = True
    for verb in ("start", "stop", "restart", "heal", "terminate"):
        supervisor.instances["fw"]["state"] = state
        answer = rest.call("POST", f"/v1/instances/fw/{verb}")
        if verb in refused:
            assert (answer.status, answer.code) == (409, "instance.wrong-state")
        else:
            assert answer.status == 202, answer.body


def test_an_id_that_is_taken(deployed: tuple[Agent, StandIn, Rest]) -> None:
    _, _, rest = deployed
    package = rest.get("/v1/instances/fw")["package"]
    answer = create(rest, package, id="fw")
    assert (answer.status, answer.code) == (409, "instance.exists")
    names = {create(rest, package).json["instance"] for _ in range(3)}
    assert names == {"passthrough-1", "passthrough-2", "passthrough-3"}


def test_a_deployment_that_fails_is_gone_and_says_why(
    held: tuple[Agent, StandIn], archive: Path
) -> None:
    agent, supervisor = held
    rest = agent.rest()
    answer = create(rest, upload(rest, archive), id="fw")
    assert rest.get("/v1/instances/fw")["state"] == "pending"
    supervisor.end(answer.json["id"], "rolled-back", ERROR)
    ended = rest.finish(answer)
    assert ended["state"] == "rolled-back" and ended["error"] == ERROR
    assert rest.call("GET", "/v1/instances/fw").code == "instance.not-found"
    assert rest.call("POST", "/v1/instances/fw/start").code == "instance.not-found"
    assert create(rest, rest.get("/v1/packages")["packages"][0]["id"], id="fw").status == 202


def test_what_the_supervisor_refuses_leaves_nothing(
    held: tuple[Agent, StandIn], archive: Path
) -> None:
    agent, supervisor = held
    rest = agent.rest()

    def refuse(_: dict[str, object]) -> dict[str, object]:
        raise Refusal("platform.no-resources", "no memory")

    supervisor.handlers["execute"] = refuse
    answer = create(rest, upload(rest, archive), id="fw")
    assert (answer.status, answer.code) == (507, "platform.no-resources")
    assert rest.get("/v1/instances")["instances"] == []
    assert rest.get("/v1/operations")["operations"] == []


def test_waiting_for_the_next_step(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, supervisor = held
    rest = agent.rest()
    operation = create(rest, upload(rest, archive)).json
    path = f"/v1/operations/{operation['id']}"
    for name in ("check", "memory"):
        seen = rest.get(path)["revision"]
        supervisor.step(operation["id"], name, "done")
        operation = rest.get(f"{path}?wait=20&seen={seen}")
        assert operation["steps"][-1]["name"] == name
    supervisor.end(operation["id"])
    assert rest.get(f"{path}?wait=20")["state"] == "succeeded"
    kinds = [event["type"] for event in rest.get("/v1/events")["events"]]
    assert kinds.count("operation-step") == 2 and "operation-ended" in kinds


def test_too_many_waiters_are_answered_at_once(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, _ = held
    rest = agent.rest()
    operation = create(rest, upload(rest, archive)).json
    path = f"/v1/operations/{operation['id']}?wait=20"
    waiting = [rest.connection() for _ in range(30)]
    for connection in waiting:
        connection.request("GET", path)
    assert rest.get("/v1/packages")["packages"]
    assert any(connection.getresponse().status == 200 for connection in reversed(waiting))
    for connection in waiting:
        connection.close()


def test_events_as_a_stream(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, _ = held
    rest = agent.rest()
    connection = rest.connection()
    connection.request("GET", "/v1/events?after=0", headers={"Accept": "text/event-stream"})
    response = connection.getresponse()
    assert response.getheader("Content-Type") == "text/event-stream"
    upload(rest, archive)
    lines: list[bytes] = []
    while not any(line.startswith(b"event: package-uploaded") for line in lines):
        lines.append(response.readline())
    connection.close()


# ---- the supervisor goes away ----------------------------------------------------------------------


def test_without_a_supervisor_it_says_so(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, supervisor = held
    rest = agent.rest()
    package = upload(rest, archive)
    supervisor.stop()
    assert rest.get("/v1")["health"] == "failed"
    answer = create(rest, package, id="fw")
    assert (answer.status, answer.code) == (503, "platform.unavailable")
    supervisor.start()
    assert rest.get("/v1")["health"] == "ok"
    assert rest.get("/v1/instances")["instances"] == []
    assert create(rest, package, id="fw").status == 202


def test_the_supervisor_is_replaced_in_the_middle(held: tuple[Agent, StandIn], archive: Path) -> None:
    """The operation is followed on, and its end, which no event told, is found."""
    agent, supervisor = held
    rest = agent.rest()
    answer = create(rest, upload(rest, archive), id="fw")
    subscribed = len(supervisor.asked("subscribe"))
    supervisor.stop()
    supervisor.end(answer.json["id"])  # nobody hears it
    supervisor.start()
    supervisor.wait_for(lambda: len(supervisor.asked("subscribe")) > subscribed)
    assert rest.finish(answer)["state"] == "succeeded"
    assert rest.get("/v1/instances/fw")["state"] == "started"


# ---- the agent is killed ---------------------------------------------------------------------------


def test_a_new_agent_adopts_and_settles(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, supervisor = held
    answer = create(agent.rest(), upload(agent.rest(), archive), id="fw")
    agent.kill()
    supervisor.end(answer.json["id"])
    agent.start()
    rest = agent.rest()
    assert rest.finish(answer)["state"] == "succeeded"
    assert rest.get("/v1/instances/fw")["desired"] == "started"
    assert len(supervisor.asked("execute")) == 1


def test_an_operation_the_supervisor_never_heard_of(
    held: tuple[Agent, StandIn], archive: Path
) -> None:
    """Killed between writing it down and asking: afterwards the state is as before, and says so."""
    agent, supervisor = held
    rest = agent.rest()
    package = upload(rest, archive)
    reached = threading.Event()

    def never(_: dict[str, object]) -> dict[str, object]:
        reached.set()
        threading.Event().wait()
        raise AssertionError

    supervisor.handlers["execute"] = never
    connection = rest.connection()
    body = b'{"package": "%s", "ports": %s, "id": "fw"}' % (package.encode(), _ports())
    connection.request("POST", "/v1/instances", body, {"Content-Type": "application/json"})
    assert reached.wait(20)
    agent.kill()
    del supervisor.handlers["execute"]
    agent.start()
    (operation,) = rest.get("/v1/operations")["operations"]
    ended = rest.get(f"/v1/operations/{operation['id']}?wait=20")
    assert (ended["state"], ended["error"]["code"]) == ("failed", "operation.interrupted")
    assert rest.call("GET", "/v1/instances/fw").code == "instance.not-found"
    assert rest.call("DELETE", f"/v1/packages/{package}").status == 204


def _ports() -> bytes:
    import json

    return json.dumps(PORTS).encode()


def test_after_a_reboot_what_shall_be_is_deployed_again(
    deployed: tuple[Agent, StandIn, Rest],
) -> None:
    agent, supervisor, _ = deployed
    agent.kill()
    supervisor.stop()
    supervisor.instances.clear()
    supervisor.operations.clear()
    supervisor.auto = True
    supervisor.start()
    asked = len(supervisor.asked("execute"))
    agent.start()
    supervisor.wait_for(lambda: len(supervisor.asked("execute")) > asked)
    again = supervisor.asked("execute")[-1]
    assert (again["verb"], again["instance"]) == ("deploy", "fw")
    assert agent.rest().get("/v1/instances/fw")["state"] == "started"


def test_a_reboot_without_the_interface_is_told_and_can_be_mended(
    deployed: tuple[Agent, StandIn, Rest],
) -> None:
    agent, supervisor, rest = deployed
    agent.kill()
    supervisor.stop()
    supervisor.instances.clear()
    supervisor.start()
    asked = len(supervisor.asked("execute"))
    agent.start()
    supervisor.wait_for(lambda: len(supervisor.asked("execute")) > asked)
    gone = {"code": "port.interface-missing", "message": "there is no eth1"}
    operation = supervisor.asked("execute")[-1]["operation"]
    supervisor.end(operation, "rolled-back", gone)
    assert rest.get(f"/v1/operations/{operation}?wait=20")["state"] == "rolled-back"
    found = rest.get("/v1/instances/fw")
    assert (found["state"], found["health"]) == ("absent", "failed")
    assert "there is no eth1" in found["problems"][0]
    assert rest.call("GET", "/v1/instances/fw/monitor").code == "instance.wrong-state"
    supervisor.auto = True
    assert rest.finish(rest.call("POST", "/v1/instances/fw/start"))["state"] == "succeeded"
    assert rest.get("/v1/instances/fw")["problems"] == []
    rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))
    assert rest.call("GET", "/v1/instances/fw").status == 404


def test_a_started_instance_goes_only_by_force(deployed: tuple[Agent, StandIn, Rest]) -> None:
    _, supervisor, rest = deployed
    supervisor.auto = True
    answer = rest.call("POST", "/v1/instances/fw/terminate", {"force": False})
    assert (answer.status, answer.code) == (409, "instance.wrong-state")
    assert rest.finish(rest.call("POST", "/v1/instances/fw/terminate", {"force": True}))
    assert supervisor.asked("execute")[-1]["force"] is True
    assert rest.call("GET", "/v1/instances/fw").status == 404


def test_killed_at_any_moment_of_uploads_and_operations(
    held: tuple[Agent, StandIn], archive: Path
) -> None:
    """Afterwards: a sound database, packages whole or not there, no operation that never ends."""
    agent, supervisor = held
    supervisor.auto = True
    data = archive.read_bytes()
    for round_ in range(12):
        stop = threading.Event()
        begun = threading.Semaphore(0)

        def work(stop: threading.Event = stop, begun: threading.Semaphore = begun) -> None:
            rest = agent.rest(timeout=20)
            try:
                while not stop.is_set():
                    begun.release()
                    rest.call("POST", "/v1/packages", raw=data, kind="application/zip")
                    for found in rest.get("/v1/packages")["packages"]:
                        answer = create(rest, found["id"])
                        if answer.status == 202:
                            rest.call(
                                "POST",
                                f"/v1/instances/{answer.json['instance']}/terminate",
                                {"force": True},
                            )
                        rest.call("DELETE", f"/v1/packages/{found['id']}")
            except (OSError, EOFError, ValueError):
                pass
            except Exception as error:
                if "Disconnected" not in type(error).__name__ and "IncompleteRead" not in repr(error):
                    raise

        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(3 + 2 * round_):
            begun.acquire(timeout=20)
        agent.kill()
        stop.set()
        for thread in threads:
            thread.join()
        agent.start()
        rest = agent.rest()
        with sqlite3.connect(agent.state / "agent.sqlite") as db:
            assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        there = {found["id"] for found in rest.get("/v1/packages")["packages"]}
        assert set(left_behind(agent)) == there
        for operation in rest.get("/v1/operations")["operations"]:
            assert rest.get(f"/v1/operations/{operation['id']}?wait=20")["state"] != "running"
        for instance in rest.get("/v1/instances")["instances"]:
            assert instance["state"] == "started"
        assert {found["id"] for found in rest.get("/v1/instances")["instances"]} == set(
            supervisor.instances
        )
