"""Sources of small components for the tests of the platform."""

FORWARD_C = """
#include <coven/component.h>
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
COVEN_COMPONENT(.process_burst = process_burst);
"""

COUNT_C = """
#include <coven/component.h>
static void process_pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)pkt;
    if (fs) {
        uint64_t *seen = fs;
        *seen += 1;
        coven_gauge(coven_metric(self, "flow-pkts"), (double)*seen);
    }
}
static int allocate_new_fs(struct coven_component *self, const struct coven_packet *pkt, void *fs)
{
    (void)pkt; (void)fs;
    coven_count(coven_metric(self, "flows"), 1);
    return 0;
}
COVEN_COMPONENT(.process_pkt = process_pkt, .allocate_new_fs = allocate_new_fs);
"""

COUNT_METRICS = [
    {"name": "flows", "type": "counter", "unit": "flows", "help": "flows seen for the first time"},
    {"name": "flow-pkts", "type": "gauge", "unit": "packets", "help": "packets of the last flow"},
]
COUNT_STATE = {"bytes": 8, "version": 1, "scope": "flow", "class": "critical"}

HANGS_ON_CALL_C = """
#include <coven/component.h>
static int hang(struct coven_component *self, struct coven_answer *answer)
{
    (void)self; (void)answer;
    for (volatile int forever = 1; forever;)
        ;
    return 0;
}
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
static const struct coven_operation operations[] = {{"hang", hang}, {NULL, NULL}};
COVEN_COMPONENT(.process_burst = process_burst, .operations = operations);
"""
HANGS_ON_CALL_OPERATIONS = [{"name": "hang", "help": "never answers", "arguments": []}]

BROKEN_C = """
#include <coven/component.h>
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    undeclared = n;
}
COVEN_COMPONENT(.process_burst = process_burst);
"""

FORWARD_PY = """
from coven.component import Component

class Pass(Component):
    def process_burst(self, burst):
        pass
"""

RAISES_PY = """
from coven.component import Component
raise RuntimeError("no luck today")
"""

EXITS_PY = """
import os, sys
print("leaving early", flush=True)
print("with a reason", file=sys.stderr, flush=True)
os._exit(3)
"""

HANGS_PY = """
import sys, threading
print("waiting for godot", flush=True)
threading.Event().wait()
"""

FLOODS_PY = """
import sys
for number in range(10**9):
    print("noise", number, "." * 200)
"""

TALKS_PY = """
from coven.component import Component, operation

class Talks(Component):
    @operation("say")
    def say(self, text):
        print(text, flush=True)

    def process_burst(self, burst):
        pass
"""

# Dies as soon as it is ready; the first start of an instance is spared when there is a packet to wait for.
DIES_PY = """
import os, threading
from coven.component import Component

class Dies(Component):
    def process_burst(self, burst):
        print("last words of the dying", flush=True)
        os._exit(9)
"""

FORKS_PY = """
import os, subprocess
from coven.component import Component

class Forks(Component):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        child = subprocess.Popen(["/bin/sleep", "1000"], start_new_session=True)
        print(f"child {child.pid}", flush=True)

    def process_burst(self, burst):
        pass
"""
