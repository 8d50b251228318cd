"""Descriptors and packages for tests: small, complete, and easy to break in one place."""

from __future__ import annotations

from pathlib import Path

VNF = """\
coven: 1
name: fw
version: "1.0.0"
provider: tests
summary: a function
ports:
  lan: {summary: inside}
  wan:
components:
  first:
    source: vnfc/first
    isolation: fused
    options: {mode: "${mode}", limit: 5}
  second:
    source: vnfc/second
    isolation: shared
    on_failure: bypass
    limits: {memory: 64M, cpu: 0.5, pids: 8}
paths:
  inspect:
    hops: [lan, first, second, wan]
    bidirectional: same-order
parameters:
  mode: {type: string, enum: [drop, count], default: drop}
"""

FIRST = """\
name: first
summary: the first component
framework: c
entry: first.c
outputs: 2
options:
  properties:
    mode: {type: string, enum: [drop, count], default: drop}
    limit: {type: integer, minimum: 1, default: 7}
metrics:
  - {name: seen, type: counter, unit: packets, help: packets seen}
operations:
  - name: set-mode
    help: sets the mode
    arguments:
      - {name: mode, type: string, help: the mode, enum: [drop, count]}
state: {bytes: 64}
"""

SECOND = """\
name: second
framework: c
entry: second.c
"""

SOURCE = """\
#include <coven/component.h>

static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self;
    (void)pkts;
    (void)n;
}

COVEN_COMPONENT(.process_burst = process_burst);
"""


def write(folder: Path, **changes: str) -> Path:
    """Write the function's folder; `vnf`, `first`, `second` replace a whole file."""
    for name, text in (("first", FIRST), ("second", SECOND)):
        component = folder / "vnfc" / name
        component.mkdir(parents=True, exist_ok=True)
        (component / "component.yaml").write_text(changes.get(name, text), encoding="utf-8")
        (component / f"{name}.c").write_text(SOURCE, encoding="utf-8")
    (folder / "vnf.yaml").write_text(changes.get("vnf", VNF), encoding="utf-8")
    return folder


def edited(text: str, old: str, new: str) -> str:
    """Give `text` with `old`, which it must have, replaced."""
    assert old in text, old
    return text.replace(old, new, 1)
