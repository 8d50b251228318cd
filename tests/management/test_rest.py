"""What REST does with good and bad requests; every answer is held against openapi.yaml by the client."""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
import yaml

from coven.management.server import MAX_CONNECTIONS
from tests.lib.agent import Agent, running
from tests.lib.rest import OPENAPI, Answer, Rest
from tests.lib.standin import StandIn
from tests.management.conftest import PORTS

ZIP = "application/zip"


def upload(rest: Rest, archive: Path) -> str:
    """Upload a package; gives its id."""
    answer = rest.call("POST", "/v1/packages", raw=archive.read_bytes(), kind=ZIP)
    assert answer.status == 201, answer.body
    assert answer.headers["location"] == f"/v1/packages/{answer.json['id']}"
    return str(answer.json["id"])


def create(rest: Rest, package: str, **more: object) -> Answer:
    """Ask for an instance."""
    return rest.call("POST", "/v1/instances", {"package": package, "ports": PORTS, **more})


def left_behind(agent: Agent) -> list[str]:
    """Give what lies in the folders of packages and uploads."""
    return [
        path.name
        for folder in (agent.state / "incoming", agent.state / "packages")
        for path in folder.iterdir()
    ]


# ---- access ----------------------------------------------------------------------------------------


def test_tcp_needs_the_token(agent: Agent) -> None:
    address = agent.address()
    missing = Rest(address=address).call("GET", "/v1")
    assert (missing.status, missing.code) == (401, "auth.missing")
    wrong = Rest(address=address, token="x" * 43).call("GET", "/v1")
    assert (wrong.status, wrong.code) == (401, "auth.wrong")
    assert "invalid_token" in wrong.headers["www-authenticate"]
    other = Rest(address=address).call("GET", "/v1", headers={"Authorization": "Basic eA=="})
    assert other.code == "auth.wrong"
    assert Rest(address=address, token=agent.token).call("GET", "/v1").status == 200


def test_nothing_is_told_without_a_token(agent: Agent) -> None:
    """Not even whether a resource exists or has a method."""
    stranger = Rest(address=agent.address())
    for method, path in (("GET", "/nothing"), ("PUT", "/v1"), ("POST", "/v1/packages")):
        assert stranger.call(method, path).status == 401


@pytest.mark.parametrize("text", [b"", b"\n", b"short\n", b"x" * 40 + b" y", b"\xff" * 43])
def test_a_token_file_that_protects_nothing_lets_nobody_in(tmp_path: Path, text: bytes) -> None:
    """With an empty one, `Authorization: Bearer` would be enough."""
    agent = Agent(tmp_path, listen=("127.0.0.1:0",))
    agent.state.mkdir()
    (agent.state / "token").write_bytes(text)
    agent.begin()
    assert agent.process is not None
    assert agent.process.wait(20) != 0
    log = agent.log.read_text()
    assert "holds no token" in log and "remove the file" in log and "Traceback" not in log
    assert not any(line.startswith("listening") for line in agent.output)


def test_a_token_that_others_could_read_is_shut(agent: Agent) -> None:
    agent.stop()
    (agent.state / "token").chmod(0o644)
    agent.start()
    assert stat.S_IMODE((agent.state / "token").stat().st_mode) == 0o600
    assert "could be read by other users" in agent.log.read_text()


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer ", "Bearer \xff", "Bearer " + "x" * 20000])
def test_tokens_that_are_none(agent: Agent, value: str) -> None:
    answer = Rest(address=agent.address()).call("GET", "/v1", headers={"Authorization": value})
    assert (answer.status, answer.code) == (401, "auth.wrong" if value else "auth.missing")


def test_the_token_is_shown_once_and_kept_private(agent: Agent) -> None:
    assert stat.S_IMODE((agent.state / "token").stat().st_mode) == 0o600
    assert len(agent.token) >= 43
    assert sum(agent.token in line for line in agent.output) == 1
    token = agent.token
    agent.stop()
    agent.start()
    assert agent.token == token
    assert not any(token in line for line in agent.output)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_user_is_refused_at_the_socket(agent: Agent) -> None:
    for folder in (agent.socket.parent, *agent.socket.parent.parents):
        if folder == Path("/tmp"):
            break
        folder.chmod(0o755)
    asked = subprocess.run(
        [
            sys.executable,
            "-c",
            "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
            "s.connect(sys.argv[1]); s.sendall(b'GET /v1 HTTP/1.1\\r\\nHost: x\\r\\n'"
            "b'Connection: close\\r\\n\\r\\n'); print(s.makefile().read())",
            str(agent.socket),
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert asked.startswith("HTTP/1.1 403") and "auth.forbidden" in asked


# ---- requests that cannot be served ----------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(OPENAPI["paths"]))
def test_a_wrong_method_is_405_with_allow(agent: Agent, path: str) -> None:
    item = OPENAPI["paths"][path]
    answer = agent.rest().call("PATCH", path.replace("{", "").replace("}", ""))
    assert (answer.status, answer.code) == (405, "request.method-not-allowed")
    allowed = set(answer.headers["allow"].replace(" ", "").split(",")) - {"HEAD"}
    assert allowed == {method.upper() for method in item if method in ("get", "post", "delete")}


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/nothing", "request.not-found"),
        ("GET", "/v1/packages/none", "package.not-found"),
        ("DELETE", "/v1/packages/none", "package.not-found"),
        ("GET", "/v1/packages/..%2f..%2ftoken", "package.not-found"),
        ("GET", "/v1/instances/none", "instance.not-found"),
        ("GET", "/v1/instances/none/monitor", "instance.not-found"),
        ("GET", "/v1/instances/none/counters", "instance.not-found"),
        ("GET", "/v1/instances/none/list", "instance.not-found"),
        ("GET", "/v1/instances/none/check", "instance.not-found"),
        ("GET", "/v1/instances/none/logs", "instance.not-found"),
        ("GET", "/v1/instances/none/components/x/logs", "instance.not-found"),
        ("POST", "/v1/instances/none/start", "instance.not-found"),
        ("POST", "/v1/instances/none/stop", "instance.not-found"),
        ("POST", "/v1/instances/none/restart", "instance.not-found"),
        ("POST", "/v1/instances/none/heal", "instance.not-found"),
        ("POST", "/v1/instances/none/terminate", "instance.not-found"),
        ("GET", "/v1/operations/none", "operation.not-found"),
    ],
)
def test_what_is_not_there_is_404(agent: Agent, method: str, path: str, code: str) -> None:
    answer = agent.rest().call(method, path)
    assert (answer.status, answer.code) == (404, code)


@pytest.mark.parametrize(
    ("raw", "kind", "status", "code"),
    [
        (b"{", "application/json", 400, "request.malformed"),
        (b"\xff\xfe", "application/json", 400, "request.malformed"),
        (b'{"package": NaN}', "application/json", 400, "request.malformed"),
        (b"[" * 100000, "application/json", 400, "request.malformed"),
        (b"", "application/json", 400, "request.malformed"),
        (b'{"package": "a", "package": "b", "ports": {}}', "application/json", 400, "request.malformed"),
        (b'{"package": "\\ud800", "ports": {}}', "application/json", 400, "request.malformed"),
        (b"[]", "application/json", 422, "request.invalid"),
        (b"{}", "application/json", 422, "request.invalid"),
        (b'{"package": 1, "ports": {}}', "application/json", 422, "request.invalid"),
        (b'{"package": "p", "ports": []}', "application/json", 422, "request.invalid"),
        (b'{"package": "p", "ports": {"a": 1}}', "application/json", 422, "request.invalid"),
        (b'{"package": "p", "ports": {}, "id": "A"}', "application/json", 422, "request.invalid"),
        (b'{"package": "p", "ports": {}, "x": 1}', "application/json", 422, "request.invalid"),
        (b'{"package": "p", "ports": {}}', "application/json", 404, "package.not-found"),
        (b"{}", "text/plain", 415, "request.unsupported-media-type"),
        (b" " * (1024 * 1024 + 1), "application/json", 413, "request.too-large"),
    ],
)
def test_bad_bodies(agent: Agent, raw: bytes, kind: str, status: int, code: str) -> None:
    answer = agent.rest().call("POST", "/v1/instances", raw=raw, kind=kind)
    assert (answer.status, answer.code) == (status, code)


def test_every_fault_of_a_body_is_found(agent: Agent) -> None:
    answer = agent.rest().call("POST", "/v1/instances", {"package": 1, "ports": {}, "start": "yes"})
    assert {finding["where"]["part"] for finding in answer.json["findings"]} == {"package", "start"}


@pytest.mark.parametrize("query", ["limit=x", "limit=0", "limit=99999", "wait=-1", "after=1.5"])
def test_bad_queries(agent: Agent, query: str) -> None:
    answer = agent.rest().call("GET", f"/v1/events?{query}")
    assert (answer.status, answer.code) == (422, "request.invalid")


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /v1\r\n\r\n", b"400"),
        (b"GET /v1 HTTP/3.0\r\n\r\n", b"400"),
        (b"GET /v1 HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"POST /v1/instances HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /v1/instances HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"400"),
        (
            b"POST /v1/instances HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"400",
        ),
        (b"GET /" + b"x" * 40000 + b" HTTP/1.1\r\n\r\n", b"413"),
        (b"GET /v1 HTTP/1.1\r\nX: " + b"x" * 40000 + b"\r\n\r\n", b"413"),
    ],
)
def test_what_the_server_refuses_is_a_problem_too(agent: Agent, head: bytes, status: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(agent.socket))
        client.sendall(head)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.split(b" ")[1] == status, answer
    assert b"application/problem+json" in answer and b"urn:coven:error:request." in answer
    assert agent.rest().call("GET", "/v1").status == 200


def test_the_document_is_served(agent: Agent) -> None:
    answer = agent.rest().call("GET", "/v1/openapi.yaml")
    assert yaml.safe_load(answer.body) == OPENAPI


# ---- packages --------------------------------------------------------------------------------------


def test_a_package_comes_is_read_and_goes(agent: Agent, archive: Path) -> None:
    rest = agent.rest()
    identity = upload(rest, archive)
    assert [found["id"] for found in rest.get("/v1/packages")["packages"]] == [identity]
    found = rest.get(f"/v1/packages/{identity}")
    assert found["vnf"] == "passthrough" and found["components"][0]["framework"] == "c"
    again = rest.call("POST", "/v1/packages", raw=archive.read_bytes(), kind=ZIP)
    assert (again.status, again.code) == (409, "package.exists")
    assert rest.call("DELETE", f"/v1/packages/{identity}").status == 204
    assert rest.call("GET", f"/v1/packages/{identity}").code == "package.not-found"
    assert left_behind(agent) == []


def test_validate_keeps_nothing(agent: Agent, archive: Path) -> None:
    rest = agent.rest()
    answer = rest.call("POST", "/v1/packages/validate", raw=archive.read_bytes(), kind=ZIP)
    assert answer.status == 200
    assert rest.get("/v1/packages")["packages"] == [] and left_behind(agent) == []


def multipart(*parts: tuple[str, bytes]) -> bytes:
    """Give a multipart body with the boundary `b`."""
    text = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n'
        % (name.encode(), data)
        for name, data in parts
    )
    return text + b"--b--\r\n"


def test_a_package_as_multipart(agent: Agent, archive: Path) -> None:
    body = multipart(("note", b"\r\n--bx not the boundary"), ("file", archive.read_bytes()))
    kind = "multipart/form-data; boundary=b"
    answer = agent.rest().call("POST", "/v1/packages", raw=body, kind=kind)
    assert answer.status == 201, answer.body
    assert answer.json["bytes"] == archive.stat().st_size


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (multipart(("other", b"x")), "request.malformed"),
        (multipart(), "request.malformed"),
        (multipart(("file", b"")), "request.malformed"),
        (multipart(("file", b"x"))[:-6], "request.incomplete"),
        (b"no boundary at all", "request.incomplete"),
        (b"--b\r\n" + b"x" * 20000 + b"\r\n--b--\r\n", "request.malformed"),
    ],
)
def test_bad_multipart_bodies(agent: Agent, body: bytes, code: str) -> None:
    answer = agent.rest().call(
        "POST", "/v1/packages", raw=body, kind="multipart/form-data; boundary=b"
    )
    assert (answer.status, answer.code) == (400, code)
    assert left_behind(agent) == []


def test_what_is_no_archive(agent: Agent) -> None:
    answer = agent.rest().call("POST", "/v1/packages", raw=b"not a zip", kind=ZIP)
    assert (answer.status, answer.code) == (422, "package.bad-archive")
    wrong = agent.rest().call("POST", "/v1/packages", raw=b"x", kind="text/html")
    assert (wrong.status, wrong.code) == (415, "request.unsupported-media-type")
    assert left_behind(agent) == []


@pytest.mark.parametrize("is_chunked", [False, True])
def test_an_upload_that_ends_early_leaves_nothing(
    agent: Agent, archive: Path, is_chunked: bool
) -> None:
    data = archive.read_bytes()
    part = data[: len(data) // 2]
    if is_chunked:
        body = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s" % (len(data), part)
    else:
        body = b"Content-Length: %d\r\n\r\n%s" % (len(data), part)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(agent.socket))
        client.sendall(b"POST /v1/packages HTTP/1.1\r\nContent-Type: application/zip\r\n" + body)
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.split(b" ")[1] == b"400" and b"request.incomplete" in answer, answer
    assert left_behind(agent) == []


@pytest.mark.parametrize("size", [b"f" * 16, b"-5", b"zz", b"5;" + b"x" * 100000])
def test_chunks_of_impossible_sizes(agent: Agent, size: bytes) -> None:
    head = b"POST /v1/packages HTTP/1.1\r\nContent-Type: application/zip\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(agent.socket))
        client.sendall(head + size + b"\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert answer.split(b" ")[1] == b"400", answer
    assert left_behind(agent) == []


def test_a_declared_size_beyond_the_limit_is_refused_at_once(agent: Agent) -> None:
    connection = agent.rest().connection()
    connection.putrequest("POST", "/v1/packages")
    connection.putheader("Content-Type", ZIP)
    connection.putheader("Content-Length", str(1 << 40))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413 and b"request.too-large" in response.read()
    connection.close()
    assert left_behind(agent) == []


def test_an_upload_beyond_the_limit_is_never_in_memory(agent: Agent) -> None:
    process = psutil.Process(agent.pid)
    agent.rest().call("POST", "/v1/packages", raw=b"not a zip", kind=ZIP)  # load what it takes
    before = process.memory_info().rss
    peak = 0
    connection = agent.rest().connection()
    connection.putrequest("POST", "/v1/packages")
    connection.putheader("Content-Type", ZIP)
    connection.putheader("Transfer-Encoding", "chunked")
    connection.endheaders()
    piece = b"%x\r\n%s\r\n" % (1 << 20, b"z" * (1 << 20))
    try:
        for _ in range(64):
            connection.send(piece)
            peak = max(peak, process.memory_info().rss)
    except (BrokenPipeError, ConnectionResetError):
        pass
    response = connection.getresponse()
    assert response.status == 413 and b"request.too-large" in response.read()
    connection.close()
    assert peak - before < 16 << 20
    assert left_behind(agent) == []


def test_a_package_in_use_stays(held: tuple[Agent, StandIn], archive: Path) -> None:
    agent, supervisor = held
    rest = agent.rest()
    identity = upload(rest, archive)
    operation = create(rest, identity).json
    supervisor.end(operation["id"])
    answer = rest.call("DELETE", f"/v1/packages/{identity}")
    assert (answer.status, answer.code) == (409, "package.in-use")


# ---- listeners -------------------------------------------------------------------------------------


def asks_in_time(rest: Rest) -> bool:
    """Tell whether a request is answered while others hold their connections."""
    done = threading.Event()

    def ask() -> None:
        assert rest.call("GET", "/v1").status == 200
        done.set()

    threading.Thread(target=ask, daemon=True).start()
    return done.wait(20)


def test_silent_clients_stall_nobody(agent: Agent) -> None:
    """More of them than there are threads, on both listeners, some in the middle of a request."""
    silent = [socket.create_connection(agent.address(), timeout=20) for _ in range(60)]
    for _ in range(60):
        client = socket.socket(socket.AF_UNIX)
        client.connect(str(agent.socket))
        silent.append(client)
    for client in (*silent[:8], *silent[-8:]):
        client.sendall(b"GET /v1 HTTP/1.1\r\nHo")
    assert asks_in_time(Rest(address=agent.address(), token=agent.token))
    assert asks_in_time(agent.rest())
    for client in silent:
        client.close()


def test_more_silent_clients_than_are_kept_keep_nobody_out(agent: Agent) -> None:
    silent = [socket.create_connection(agent.address(), timeout=20) for _ in range(MAX_CONNECTIONS + 30)]
    for _ in range(3):
        assert asks_in_time(Rest(address=agent.address(), token=agent.token))
    for client in silent:
        client.close()


def test_a_request_that_does_not_come_to_its_end_is_cut(agent: Agent) -> None:
    with socket.create_connection(agent.address(), timeout=30) as client:
        client.sendall(b"GET /v1 HTTP/1.1\r\nHo")
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert b"200" not in answer.split(b"\r\n")[0]


def test_the_next_request_on_a_connection_is_served(agent: Agent) -> None:
    connection = agent.rest().connection()
    for _ in range(5):
        connection.request("GET", "/v1/packages")
        response = connection.getresponse()
        assert response.status == 200
        response.read()
    # A body that a refusal did not read must not become the next request.
    connection.request("PATCH", "/v1", b"GET /v1 HTTP/1.1\r\n\r\n")
    response = connection.getresponse()
    assert response.status == 405
    response.read()
    try:
        connection.request("GET", "/v1/packages")
        assert connection.getresponse().status == 200
    except (http.client.HTTPException, ConnectionError):
        pass  # closed is right, too
    connection.close()


def test_the_agent_is_small(agent: Agent, archive: Path) -> None:
    """Below 90 MB after it has done what it can, with everything loaded."""
    rest = agent.rest()
    identity = upload(rest, archive)
    rest.finish(create(rest, identity))
    assert psutil.Process(agent.pid).memory_info().rss < 90e6


def test_it_ends_in_order_at_whatever_moment_it_is_told(tmp_path: Path) -> None:
    """Also when the signal comes right after the start."""
    for number in range(15):
        agent = Agent(tmp_path / str(number))
        agent.start()
        assert agent.stop() == 0


def test_what_others_keep_in_the_state_folder_is_left_alone(tmp_path: Path, archive: Path) -> None:
    """Only what an interrupted upload left is swept: `packages` may be the folder of somebody's sources."""
    agent = Agent(tmp_path)
    folder = agent.state / "packages"
    for name, file in (("mine", "vnf.yaml"), (".incoming-x", "vnf.yaml")):
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text("x")
    (folder / "note").write_text("x")
    (folder / "link").symlink_to(tmp_path)
    supervisor = StandIn(agent.run / "supervisor.sock")
    supervisor.start()
    with running(agent):
        identity = upload(agent.rest(), archive)
        agent.stop()
        shutil.copytree(folder / identity, folder / "cut-off-1.0.0")
        agent.start()
        assert sorted(path.name for path in folder.iterdir()) == ["link", "mine", "note", identity]
        assert "mine is no package" in agent.log.read_text()
    supervisor.stop()
