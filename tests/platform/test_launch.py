"""coven-launch from outside: what a process is and has once it runs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.supervisor import cgroup
from coven.supervisor.config import PACKAGE, parse_arguments
from coven.supervisor.launch import program_folders
from tests.lib.platform import BIN

LAUNCH = str(BIN / "coven-launch")
SHELL = "/bin/sh"
ROOT = os.geteuid() == 0
needs_root = pytest.mark.skipif(not ROOT, reason="needs root")
UID = 1900007777


def launch(
    *options: str, command: tuple[str, ...], pass_fds: tuple[int, ...] = (), env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LAUNCH, "--fd", "1=1", "--fd", "2=2", *options, "--", *command],
        capture_output=True, text=True, check=False, timeout=20, pass_fds=pass_fds, env=env,
    )  # fmt: skip


def output(*options: str, script: str, **more: object) -> str:
    done = launch(*options, command=(SHELL, "-c", script), **more)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout


def status_fields(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+):[ \t]*(.*?)[ \t]*$", text, re.MULTILINE))


# ---- without privileges ------------------------------------------------------------------------------


def test_the_pid_stays_the_same() -> None:
    child = subprocess.Popen(
        [LAUNCH, "--fd", "1=1", "--", SHELL, "-c", "echo $$"], stdout=subprocess.PIPE, text=True
    )
    said, _ = child.communicate(timeout=20)
    assert int(said) == child.pid


def test_the_environment_is_only_what_was_said() -> None:
    said = output("--env", "A=1", "--env", "B=x=y", script="/usr/bin/env", env={"SECRET": "s", "PATH": "/bin"})
    assert {line for line in said.splitlines() if not line.startswith(("PWD=", "_=", "SHLVL="))} == {"A=1", "B=x=y"}


def test_descriptors_are_placed_and_all_others_closed(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    # crossed on purpose: each is named by the number the other one has
    options = f"--fd 1=1 --fd 2=2 --fd 7=8 --fd 8=7 -- {SHELL} -c 'readlink /proc/$$/fd/[078]; ls /proc/$$/fd'"
    script = f"exec {LAUNCH} {options} 7<{one} 8<{two} 9<{one}"
    done = subprocess.run([SHELL, "-c", script], capture_output=True, text=True, check=True)
    said = done.stdout.splitlines()
    assert said[:3] == ["/dev/null", str(two), str(one)]
    assert {int(n) for n in said[3:]} <= {0, 1, 2, 7, 8, 10}  # 10: what the shell itself opens


def test_new_privileges_and_capabilities_are_gone() -> None:
    fields = status_fields(output(script="cat /proc/self/status"))
    assert fields["NoNewPrivs"] == "1"
    assert {fields[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Amb")} == {"0000000000000000"}


def test_signals_are_at_their_defaults() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        fields = status_fields(output(script="cat /proc/self/status"))
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR2})
    reserved = 0b11 << 31  # 32 and 33 are the C library's own; it lets nobody set them, whoever passed them on
    assert int(fields["SigIgn"], 16) & ~reserved == 0
    assert int(fields["SigBlk"], 16) & ~reserved == 0


def test_limits_session_folder_niceness_and_core(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    said = output(
        "--rlimit-nofile", "77:99", "--rlimit-core", "0", "--cwd", str(tmp_path), "--nice", "7", "--cpu", str(core),
        script="ulimit -Sn; ulimit -Hn; ulimit -c; pwd; cat /proc/self/stat; cat /proc/self/status",
    )  # fmt: skip
    lines = said.splitlines()
    assert lines[:4] == ["77", "99", "0", str(tmp_path)]
    assert lines[4].rsplit(")", 1)[1].split()[16] == "7"
    assert status_fields(said)["Cpus_allowed_list"] == str(core)


def test_the_exit_status_is_the_programs() -> None:
    assert launch(command=(SHELL, "-c", "exit 42")).returncode == 42


@pytest.mark.parametrize(
    ("options", "program", "says"),
    [
        ((), "/nonexistent/program", "/nonexistent/program: No such file or directory"),
        ((), "relative", "must be an absolute path"),
        (("--cwd", "/nonexistent"), SHELL, "--cwd /nonexistent: No such file or directory"),
        (("--fd", "5=400"), SHELL, "--fd 5=400: Bad file descriptor"),
        (("--fd", "5"), SHELL, "not N=M"),
        (("--rlimit-shoes", "3"), SHELL, "no such limit"),
        (("--rlimit-nofile", "many"), SHELL, "is not a limit"),
        (("--uid", "-3"), SHELL, "is not a number"),
        (("--frobnicate", "3"), SHELL, "no such option"),
        (("--env", "NOVALUE"), SHELL, "not KEY=VALUE"),
        (("--bind", "relative"), SHELL, "not an absolute path"),
    ],
)
def test_failures_are_told_with_their_reason(options: tuple[str, ...], program: str, says: str) -> None:
    done = launch(*options, command=(program, "-c", "echo ran"))
    assert done.returncode == 125
    assert done.stderr.startswith("coven-launch: ")
    assert says in done.stderr
    assert "ran" not in done.stdout


def test_without_a_program_it_says_so() -> None:
    done = subprocess.run([LAUNCH, "--root"], capture_output=True, text=True, check=False)
    assert (done.returncode, "no program" in done.stderr) == (125, True)


def as_user(*options: str) -> list[str]:
    """coven-launch started by a user without privileges."""
    start = [LAUNCH, "--uid", str(UID), "--gid", str(UID), "--fd", "1=1", "--fd", "2=2", "--"] if ROOT else []
    return [*start, LAUNCH, "--fd", "1=1", "--fd", "2=2", *options, "--", SHELL, "-c", "id -u"]


@pytest.fixture
def reachable() -> None:
    if ROOT and not all(parent.stat().st_mode & 0o001 for parent in Path(LAUNCH).parents):
        pytest.skip("coven-launch lies where other users cannot go")


PRIVILEGED = ("--uid", "1900008888", "--gid", "1900008888", "--new-net", "--new-ipc", "--root", "--nice", "-5")


@pytest.mark.usefixtures("reachable")
def test_without_privileges_it_refuses_unless_best_effort() -> None:
    refused = subprocess.run(as_user(*PRIVILEGED), capture_output=True, text=True, check=False)
    assert refused.returncode == 125
    assert "Operation not permitted" in refused.stderr or "Permission denied" in refused.stderr
    done = subprocess.run(as_user("--best-effort", *PRIVILEGED), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) == (UID if ROOT else os.getuid())


# ---- as root ------------------------------------------------------------------------------------------

USER = ("--uid", str(UID), "--gid", str(UID))


@needs_root
def test_user_groups_and_bounding_set() -> None:
    fields = status_fields(output(*USER, script="cat /proc/self/status"))
    assert fields["Uid"].split() == [str(UID)] * 4
    assert fields["Gid"].split() == [str(UID)] * 4
    assert fields["Groups"] == ""
    assert fields["CapBnd"] == "0000000000000000"


@needs_root
def test_a_private_root_shows_the_system_read_only_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    said = output(
        *USER, "--root",
        script=f"ls /; test -e {tmp_path} && echo HOST; touch /usr/x /etc/x /x 2>&1; touch /tmp/mine && echo TMP;"
        " echo > /dev/null && head -c 3 /dev/urandom | wc -c; ls /proc | grep -c '^[0-9]'",
    )  # fmt: skip
    top = set(said.splitlines()) & {p.name for p in Path("/").iterdir()}
    assert {"usr", "etc", "proc", "dev", "tmp"} <= top
    assert not top & {"home", "root", "var", "work", "srv", "sys", "run"}
    assert "HOST" not in said
    assert said.count("Read-only file system") == 3
    assert "TMP" in said
    lines = said.splitlines()
    assert lines[-2] == "3"
    assert int(lines[-1]) <= 5  # of the shell's own pipeline; other users' processes are hidden


@needs_root
def test_nothing_of_the_private_root_shows_outside() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    output(*USER, "--root", script="true")
    assert Path("/proc/self/mountinfo").read_text() == before


@pytest.fixture
def locked_home() -> Iterator[Path]:
    """A folder below one that only root can enter, like an installation in root's home."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name) / "home"
        (home / "tree" / "deep").mkdir(parents=True)
        (home / "tree" / "deep" / "file").write_text("content")
        (home / "out").mkdir()
        os.chown(home / "out", UID, UID)
        home.chmod(0o700)
        yield home


@needs_root
def test_binds_reach_below_folders_that_the_user_cannot_enter(locked_home: Path) -> None:
    tree, out = locked_home / "tree", locked_home / "out"
    script = f"cat {tree}/deep/file; touch {tree}/x 2>&1; echo made > {out}/made; ls {locked_home}"
    denied = launch(*USER, command=(SHELL, "-c", f"cat {tree}/deep/file"))
    assert "Permission denied" in denied.stderr
    said = output(*USER, "--root", "--bind-ro", str(tree), "--bind", str(out), script=script)
    assert said.startswith("content")
    assert "Read-only file system" in said
    assert (out / "made").read_text() == "made\n"
    assert said.splitlines()[-2:] == ["out", "tree"]


@needs_root
def test_a_single_file_can_be_bound(locked_home: Path) -> None:
    file = locked_home / "tree" / "deep" / "file"
    assert output(*USER, "--root", "--bind-ro", str(file), script=f"cat {file}") == "content"


@needs_root
def test_an_exact_bind_follows_no_link(locked_home: Path) -> None:
    (locked_home / "link").symlink_to(locked_home / "tree")
    real, detour = locked_home / "tree" / "deep", locked_home / "link" / "deep"
    assert output(*USER, "--root", "--bind-exact", str(real), script=f"cat {real}/file; touch {real}/x || true") == "content"
    for path in (detour, locked_home / "link"):
        done = launch(*USER, "--root", "--bind-exact", str(path), command=(SHELL, "-c", "true"))
        assert (done.returncode, "Too many levels of symbolic links" in done.stderr) == (125, True)
    assert output(*USER, "--root", "--bind-ro", str(detour), script=f"cat {detour}/file") == "content"


@needs_root
def test_a_link_too_long_to_copy_is_refused_not_cut(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/usr" + "/." * 200)
    done = launch("--root", "--bind-ro", str(link), command=(SHELL, "-c", "true"))
    assert done.returncode == 125 and f"{link}: File name too long" in done.stderr


@needs_root
def test_binding_what_is_not_there_fails() -> None:
    done = launch("--root", "--bind-ro", "/nonexistent", command=(SHELL, "-c", "true"))
    assert (done.returncode, "/nonexistent: No such file" in done.stderr) == (125, True)


@needs_root
def test_python_and_coven_run_in_the_private_root() -> None:
    settings = parse_arguments([])
    binds = [word for folder in program_folders(settings) for word in ("--bind-ro", folder)]
    done = launch(
        *USER, "--root", *binds, command=(sys.executable, "-I", "-c", "import coven, os; print(coven.__file__, os.getuid())")
    )  # fmt: skip
    assert done.stdout.split() == [str(PACKAGE / "__init__.py"), str(UID)], done.stderr


@needs_root
def test_the_programs_run_from_a_locked_home(locked_home: Path) -> None:
    program = locked_home / "tree" / "launch"
    program.write_bytes(Path(LAUNCH).read_bytes())
    program.chmod(0o755)
    options = [*USER, "--root", "--bind-ro", str(locked_home / "tree"), "--fd", "2=2", "--", str(program)]
    done = subprocess.run([LAUNCH, *options], capture_output=True, text=True, check=False)
    assert "no program" in done.stderr  # the inner one ran


@needs_root
def test_it_works_inside_a_chroot_that_is_no_mount_point(tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    for folder in ("usr", "etc", "proc", "dev", "tmp", "run", "srv"):
        (jail / folder).mkdir(parents=True)
    for link in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path(f"/{link}").is_symlink():
            (jail / link).symlink_to(Path(f"/{link}").readlink())
    (jail / "launch").write_bytes(Path(LAUNCH).read_bytes())
    (jail / "launch").chmod(0o755)
    (jail / "srv" / "file").write_text("inside")
    mounts = "".join(f"mount --rbind /{name} {jail}/{name} && " for name in ("usr", "etc", "proc", "dev"))
    inner = "/launch --uid 1900007777 --gid 1900007777 --root --new-net --bind-ro /srv --fd 1=1 --fd 2=2 -- "
    script = f"{mounts} chroot {jail} {inner} /bin/sh -c 'id -u; cat /srv/file; ls /'; cat /proc/self/mountinfo"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "shared", "sh", "-c", script],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if "cannot change root filesystem propagation" in done.stderr:
        pytest.skip("this is a chroot already, so every other test here shows it")
    assert done.stdout.startswith(f"{UID}\ninside"), done.stdout + done.stderr
    assert "launch" not in done.stdout.split()  # the chroot's own files are not to be seen
    assert " coven " not in done.stdout  # and the private root did not spread


@needs_root
def test_a_bind_below_an_absolute_link_stays_inside(tmp_path: Path) -> None:
    """A host whose /libx32 is a link to /srv/real: what is bound below it must not end up in the host's folder."""
    if Path("/libx32").exists():
        pytest.skip("this host has a /libx32 of its own")
    jail, data = tmp_path / "jail", tmp_path / "jail" / "srv" / "real" / "data"
    for folder in ("usr", "etc", "proc", "dev", "tmp", "run", "srv/real/data"):
        (jail / folder).mkdir(parents=True)
    (data / "file").write_text("inside")
    for link in ("bin", "sbin", "lib", "lib32", "lib64"):
        if Path(f"/{link}").is_symlink():
            (jail / link).symlink_to(Path(f"/{link}").readlink())
    (jail / "libx32").symlink_to("/srv/real")
    (jail / "launch").write_bytes(Path(LAUNCH).read_bytes())
    (jail / "launch").chmod(0o755)
    mounts = "".join(f"mount --rbind /{name} {jail}/{name} && " for name in ("usr", "etc", "proc", "dev"))
    inner = "/launch --root --bind-ro /libx32/data --fd 1=1 --fd 2=2 -- /bin/sh -c 'cat /libx32/data/file /srv/real/data/file'"
    done = subprocess.run(
        ["unshare", "-m", "--propagation", "private", "sh", "-c", f"{mounts} exec chroot {jail} {inner}"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stdout == "insideinside", done.stdout + done.stderr


@needs_root
def test_namespaces_of_its_own() -> None:
    own = {kind: str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "ipc", "mnt")}
    script = "readlink /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/mnt; cat /proc/net/dev"
    said = output("--new-net", "--new-ipc", "--root", script=script).splitlines()
    assert not {said[0], said[1], said[2]} & set(own.values())
    assert [line.split(":")[0].strip() for line in said[5:]] == ["lo"]


@needs_root
def test_cgroups_are_joined_before_the_program_runs() -> None:
    hierarchies = cgroup.find(f"coven-test-{os.getpid()}")
    if not hierarchies.folders:
        pytest.skip("no cgroup controllers here")
    folders = cgroup.create(hierarchies, "group", None)
    try:
        options = [word for folder in folders for word in ("--cgroup", str(folder))]
        said = output(*options, *USER, script="cat /proc/self/cgroup")
        assert said.count(f"coven-test-{os.getpid()}/group") == len(folders)
    finally:
        for folder in (*folders, *hierarchies.folders):
            folder.rmdir()


@needs_root
def test_a_cgroup_that_is_not_there_is_an_error() -> None:
    done = launch("--cgroup", "/sys/fs/cgroup/nonexistent", command=(SHELL, "-c", "true"))
    assert (done.returncode, "--cgroup /sys/fs/cgroup/nonexistent" in done.stderr) == (125, True)


@needs_root
def test_a_memfd_of_another_user_cannot_be_opened_again() -> None:
    """What the modes of segments rest on: read-only descriptors cannot be made writable through /proc."""
    memory = os.memfd_create("coven-test")
    os.ftruncate(memory, 4096)
    os.fchmod(memory, 0o600)
    os.fchown(memory, UID + 1, UID + 1)
    reader = os.open(f"/proc/self/fd/{memory}", os.O_RDONLY)
    code = "import os, json\ntry: os.open('/proc/self/fd/5', os.O_RDWR); print(json.dumps('opened'))\nexcept OSError as e: print(json.dumps(e.errno))"
    try:
        done = launch(
            *USER, "--fd", f"5={reader}", command=("/usr/bin/python3", "-c", code), pass_fds=(reader,)
        )  # fmt: skip
        assert json.loads(done.stdout) == 13, done.stderr
    finally:
        os.close(memory)
        os.close(reader)
