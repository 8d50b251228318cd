"""Components that attack: the worker goes on, another path keeps its traffic, every packet is accounted for, nothing is left.

Each does its worst from within its process, with everything that the launch contract gives it.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.dataplane.core import lib, sizeof
from coven.supervisor.metrics import PORT_BASE
from tests.lib.hostile import INSTANCE, moves_on, snapshot, stays_whole, subscribed, two_paths
from tests.lib.platform import BIN, PlatformUnderTest

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

# Stops, and leaves children that say it sleeps and keep both doorbells full and waiting: whoever rings or empties one next
# would stand still.
DOORBELLS = """
static void keep_full(int fd)
{
    const uint64_t most = UINT64_MAX - 1;
    size_t bytes;
    struct coven_replica *replica = (struct coven_replica *)map(COVEN_FD_REPLICA, &bytes);

    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        __atomic_store_n(&replica->in.sleeping, 1, __ATOMIC_SEQ_CST);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        while (write(fd, &most, sizeof(most)) > 0)
            ;
        fcntl(fd, F_SETFL, 0);
        poll(NULL, 0, 1);
    }
}
static void stop(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)pkt; (void)fs;
    kill(getpid(), SIGSTOP);
}
static int init(struct coven_component *self)
{
    (void)self;
    if (fork() == 0)
        keep_full(COVEN_FD_DOORBELL);
    if (fork() == 0)
        keep_full(COVEN_FD_WORKER);
    return 0;
}
COVEN_COMPONENT(.process_pkt = stop, .allocate_new_fs = allocate, .init = init);
"""


# Writes at random over all that it has, for ever, beside the component: headers, ring words, entries, packets, state slots.
SCRIBBLES = """
static void scribble(const uint32_t *packets, uint8_t *at, size_t bytes)
{
    uint64_t x = 88172645463325252u;

    while (__atomic_load_n(packets, __ATOMIC_ACQUIRE) == 0) /* the deployment is done when they come */
        poll(NULL, 0, 1);
    for (uint32_t n = 0; at; n++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        /* every second time within the first page: that is where headers and ring words are */
        at[x % (n % 2 ? bytes : 4096)] = (uint8_t)(x >> 56);
        if (n % 4096 == 0)
            poll(NULL, 0, 1);
    }
}
static int init(struct coven_component *self)
{
    size_t bytes = 0;
    const struct coven_replica *replica = (const struct coven_replica *)map(COVEN_FD_REPLICA, &bytes);

    (void)self;
    for (int fd = COVEN_FD_REPLICA; fd <= COVEN_FD_POOL; fd++) {
        uint8_t *at = map(fd, &bytes);

        if (at && fork() == 0)
            scribble(&replica->in.tail, at, bytes);
    }
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""

# Tries to make the memory of others vanish, then to make new mappings impossible.
RESIZES = """
static int init(struct coven_component *self)
{
    for (int fd = COVEN_FD_REPLICA; fd <= COVEN_FD_POOL; fd++) {
        char name[32];
        int again;

        if (ftruncate(fd, 0) == 0 || ftruncate(fd, 1 << 30) == 0)
            coven_log(self, "resized");
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0)
            coven_log(self, "sealed");
        snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
        again = open(name, O_RDWR | O_TRUNC);
        if (again >= 0 && ftruncate(again, 0) == 0)
            coven_log(self, "resized by name");
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 1 << 20);
    }
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""

# Talks without end on standard output and error and on the agent socket, as large as a datagram may be and wrong.
TALKS = """
static void talk(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    static char noise[65536];

    (void)self; (void)pkt; (void)fs;
    if (noise[0])
        return;
    memset(noise, 'x', sizeof(noise));
    for (int fd = 1; fd <= COVEN_FD_AGENT; fd++) {
        if (fork() != 0)
            continue;
        for (;;)
            if (write(fd, noise, sizeof(noise)) < 0)
                poll(NULL, 0, 1);
    }
}
COVEN_COMPONENT(.process_pkt = talk, .allocate_new_fs = allocate);
"""

# Closes everything it was given once packets come, and stays.
CLOSES = """
static void close_all(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)pkt; (void)fs;
    for (int fd = 0; fd < 64; fd++)
        close(fd);
    for (;;)
        pause();
}
COVEN_COMPONENT(.process_pkt = close_all, .allocate_new_fs = allocate);
"""

# Cannot be asked to go: no signal is heard, and its children left its process group.
CLINGS = """
static int init(struct coven_component *self)
{
    (void)self;
    for (int number = 1; number < 32; number++)
        signal(number, SIG_IGN);
    for (int i = 0; i < 3; i++) {
        if (fork() != 0)
            continue;
        setsid();
        if (fork() != 0)
            _exit(0);
        for (;;)
            pause();
    }
    return 0;
}
static void stay(struct coven_component *self)
{
    (void)self;
    for (;;)
        pause();
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init, .fini = stay);
"""

# Says without end that its out-ring is full of packets.
FLOODS_C = """
#include <pthread.h>
static void *flood(void *of)
{
    struct coven_replica *replica = of;

    for (;;)
        __atomic_store_n(&replica->out.tail, __atomic_load_n(&replica->out.head, __ATOMIC_RELAXED) + replica->ring_size,
                         __ATOMIC_RELAXED);
    return NULL;
}
static int init(struct coven_component *self)
{
    size_t bytes;
    pthread_t thread;

    (void)self;
    return pthread_create(&thread, NULL, flood, map(COVEN_FD_REPLICA, &bytes));
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""
FLOODS_PY = """
import mmap
from coven.dataplane.core import ffi

class Floods(Component):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.memory = mmap.mmap(4, os.fstat(4).st_size)
        threading.Thread(target=self.flood, daemon=True).start()

    def flood(self):
        replica = ffi.cast("struct coven_replica *", ffi.from_buffer(self.memory))
        while True:
            replica.out.tail = replica.out.head + replica.ring_size & 0xFFFFFFFF

    def process_burst(self, burst):
        pass
"""

# Says something about each packet. Not an attack, but enough to make whoever waits for its reader stand still.
CHATTERS = """
static void chatter(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)pkt; (void)fs;
    coven_log(self, "a packet, a packet, a packet, a packet, a packet, a packet, a packet, a packet");
}
COVEN_COMPONENT(.process_pkt = chatter, .allocate_new_fs = allocate);
"""

CHATTERS_PY = """
class Chatters(Component):
    def process_burst(self, burst):
        for packet in burst:
            print("a packet, a packet, a packet, a packet, a packet, a packet, a packet, a packet")
"""

# Never comes back from a packet.
HANGS = """
static void hang(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)pkt; (void)fs;
    for (volatile int forever = 1; forever;)
        ;
}
COVEN_COMPONENT(.process_pkt = hang, .allocate_new_fs = allocate);
"""

# Starts processes and takes memory without end, in children, so that it is them whom the limits meet.
SWELLS = """
static void swell(void)
{
    for (size_t bytes = 1 << 20;; poll(NULL, 0, 1)) {
        char *more = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

        if (more != MAP_FAILED)
            memset(more, 1, bytes);
    }
}
static void multiply(void)
{
    for (;; poll(NULL, 0, 1))
        if (fork() == 0)
            setsid();
}
static int init(struct coven_component *self)
{
    (void)self;
    if (fork() == 0)
        swell();
    if (fork() == 0)
        multiply();
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""

# Keeps every packet, and tries to read what is of others: their files, environment, memory.
SNOOPS_PY = """
class Snoops(Component):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.kept = []
        places = ["/var/lib/coven", "/run/coven", "/root", "/home", "/etc/shadow", "/proc/1/environ", "/proc/1/root", "/dev/mem"]
        places += [f"/proc/{pid}/{what}" for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()
                   for what in ("mem", "environ", "maps", "fd/3")]
        for place in places:
            try:
                os.listdir(place) if os.path.isdir(place) else open(place, "rb").close()
                print("could read", place, flush=True)
            except OSError:
                pass

    def process_burst(self, burst):
        for packet in burst:
            self.kept.append(packet.hold())
"""

# The same as SCRIBBLES: random bytes over all that it has, from Python.
SCRIBBLES_PY = """
import mmap, random

class Scribbles(Component):
    def process_burst(self, burst):
        if not hasattr(self, "memory"):
            self.memory = [mmap.mmap(fd, os.fstat(fd).st_size) for fd in (4, 5)]
            threading.Thread(target=self.scribble, daemon=True).start()

    def scribble(self):
        chance = random.Random(1)
        while True:
            for memory in self.memory:
                for _ in range(256):
                    memory[chance.randrange(chance.choice((4096, len(memory))))] = chance.randrange(256)
            time.sleep(0.001)
"""

ATTACKS = {"scribbles": SCRIBBLES, "resizes": RESIZES, "talks": TALKS, "closes": CLOSES, "clings": CLINGS}


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    under_test = PlatformUnderTest(tmp_path, arguments=("--start-timeout", "8"))
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for limits")
def test_swelling_ends_at_its_limits(platform: PlatformUnderTest) -> None:
    if "cgroup" in " ".join(platform.request("hello")["degraded"]):
        pytest.skip("no control groups here")
    platform.deploy(two_paths(platform, SWELLS, "copy", limits={"memory_bytes": 64 << 20, "cpu": 0.2, "pids": 16}))
    worker = platform.instance(INSTANCE)["workers"][0]["pid"]
    group = Path(platform.instance(INSTANCE)["components"][0]["replicas"][0]["cgroup"])
    moves_on(platform, packets=2000)
    assert len((group / "cgroup.procs").read_text().split()) <= 16
    stays_whole(platform, worker)


@pytest.mark.parametrize("source", [SNOOPS_PY, SCRIBBLES_PY], ids=["snoops", "scribbles"])
def test_what_python_does_harms_nobody_else(platform: PlatformUnderTest, source: str) -> None:
    platform.deploy(two_paths(platform, source, "copy", "python", hold={"packets": 64, "ms": 20}))
    worker = platform.instance(INSTANCE)["workers"][0]["pid"]
    after = moves_on(platform, packets=1000)["ports"]
    assert after["wan-b"]["tx_pkts"] >= 0.9 * after["lan-b"]["rx_pkts"]
    log = platform.request("logs", instance=INSTANCE, component="hostile", lines=100)["lines"]
    assert not [line for line in log if "could read" in line["text"]]
    stays_whole(platform, worker)


def test_doorbells_that_are_full_and_wait(platform: PlatformUnderTest) -> None:
    platform.deploy(two_paths(platform, DOORBELLS, "copy"))
    stays_whole(platform, platform.instance(INSTANCE)["workers"][0]["pid"])


@pytest.mark.parametrize(
    ("what", "isolation"), [*((what, "copy") for what in ATTACKS), ("scribbles", "shared"), ("resizes", "shared")]
)
def test_what_it_does_harms_nobody_else(platform: PlatformUnderTest, what: str, isolation: str) -> None:
    """Also not the next worker, nor the next supervisor."""
    platform.deploy(two_paths(platform, ATTACKS[what], isolation, hold={"packets": 64, "ms": 20}))
    worker = platform.instance(INSTANCE)["workers"][0]["pid"]
    moves_on(platform)
    assert platform.instance(INSTANCE)["workers"][0]["pid"] == worker
    log = platform.request("logs", instance=INSTANCE, component="hostile", lines=20)["lines"]
    assert not [line for line in log if "resized" in line["text"] or "sealed" in line["text"]]
    platform.kill(worker)
    worker = platform.wait_worker(INSTANCE, other_than=worker)["pid"]
    moves_on(platform)
    supervisor = platform.supervisor_pid
    platform.kill(supervisor)
    platform.wait_supervisor(other_than=supervisor)
    stays_whole(platform, worker)


@pytest.mark.parametrize(("framework", "isolation"), [("c", "copy"), ("c", "shared"), ("python", "copy")])
def test_who_floods_its_ring_is_ended_and_parked(platform: PlatformUnderTest, framework: str, isolation: str) -> None:
    """By name and kind: in events, in the counters, in the problems of the instance."""
    client = subscribed(platform)
    source = FLOODS_C if framework == "c" else FLOODS_PY
    platform.deploy(two_paths(platform, source, isolation, framework))
    worker = platform.instance(INSTANCE)["workers"][0]["pid"]
    told = client.wait_event(lambda event: event["type"] == "component-violation")
    assert (told["instance"], told["part"], told["kind"]) == (INSTANCE, "component hostile", "ring")
    assert set(told["counts"]) <= {"handle-foreign", "handle-twice", "handle-range", "bounds", "ring-words"}
    died = client.wait_event(lambda event: event["type"] == "component-died")
    assert re.match(r"killed for \d+ violations within 10 s \(", died["exit"])
    client.wait_event(lambda event: event["type"] == "component-parked", deadline=60)
    client.close()
    now = platform.instance(INSTANCE)
    assert any("component hostile" in problem and "violations" in problem for problem in now["problems"])
    row = (snapshot(platform) or {})["components"]["hostile"]
    assert sum(row["violation_kinds"].values()) == row["violations"] > 10_000
    after = moves_on(platform)["ports"]
    assert after["wan-b"]["tx_pkts"] >= 0.9 * after["lan-b"]["rx_pkts"]
    stays_whole(platform, worker)


@pytest.mark.parametrize(("framework", "isolation"), [("c", "fused"), ("c", "copy"), ("python", "copy")])
def test_nobody_waits_for_a_reader_of_its_log(platform: PlatformUnderTest, framework: str, isolation: str) -> None:
    """A component talks, and the supervisor, who reads it, stands still: packets go on."""
    source = CHATTERS if framework == "c" else CHATTERS_PY
    platform.deploy(two_paths(platform, source, isolation, framework))
    moves_on(platform, port="wan")
    stats = Path("/dev/shm") / platform.instance(INSTANCE)["stats_name"].lstrip("/")
    cell = sizeof("coven_stats") + 8 * (PORT_BASE + 8 * 1 + lib.COVEN_PORT_TX_PKTS)

    def sent() -> int:
        return int.from_bytes(stats.read_bytes()[cell : cell + 8], "little")

    supervisor = platform.supervisor_pid
    os.kill(supervisor, signal.SIGSTOP)
    try:
        first, end = sent(), time.monotonic() + 20
        while sent() < first + 2000:  # far more text than a pipe holds
            assert time.monotonic() < end, "the worker waits for its log to be read"
            select.select([], [], [], 0.01)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    component = None if isolation == "fused" else "hostile"
    lines = platform.request("logs", instance=INSTANCE, component=component, lines=5)["lines"]
    assert any("a packet" in line["text"] for line in lines)


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_though_nobody_asks_it(platform: PlatformUnderTest) -> None:
    platform.deploy(two_paths(platform, HANGS, "fused"))
    before = platform.instance(INSTANCE)["workers"][0]["pid"]
    after = platform.wait_worker(INSTANCE, other_than=before)
    assert after["last_exit"] == "hung: a fused component did not return"
    assert "component-crash in hostile" in after["recovered"]
