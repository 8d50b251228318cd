"""Workers in plans: number, cores, profile, what cannot be divided, and the shares of a generator."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coven.errors import CovenError
from coven.forwarder.instance_plan import InstancePlan, WorkerPlan
from coven.forwarder.shares import ENDLESS, share_of
from coven.supervisor.cores import component_cores
from tests.lib.functions import VNF
from tests.unit.test_descriptor import parse
from tests.unit.test_plan import fault, make

GEN = {"tool": "gen", "packets": 10}
FILE = {"tool": "pcap", "out": "/captures/a.pcap"}


def test_one_worker_that_is_not_pinned_is_usual() -> None:
    worker = make().worker
    assert (worker.cores, worker.profile, worker.component_cores) == ((None,), "balanced", ())


def test_the_descriptor_says_and_the_operator_may_say_otherwise() -> None:
    vnf = parse(VNF + "workers: {count: 3, profile: power-save}\n")
    assert (make(vnf).worker.cores, make(vnf).worker.profile) == ((None,) * 3, "power-save")
    other = make(vnf, workers={"cores": [2, 5], "component_cores": [0, 1], "profile": "low-latency"}).worker
    assert (other.cores, other.component_cores, other.profile) == ((2, 5), (0, 1), "low-latency")
    assert make(vnf, workers={"count": 2}).worker.cores == (None, None)


def test_it_survives_the_way_to_the_supervisor() -> None:
    planned = make(workers={"cores": [1, 0], "component_cores": [3]})
    assert InstancePlan.from_json(planned.to_json()) == planned


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"count": 0}, "0 is no number of workers"),
        ({"count": 17}, "17 is no number of workers"),
        ({"count": True}, "True is no number of workers"),
        ({"count": "2"}, "'2' is no number of workers"),
        ({"count": 3, "cores": [0, 1]}, "2 cores for 3 workers"),
        ({"cores": [1, 1]}, "cores names a core twice"),
        ({"cores": [-1]}, "cores must be a list of core numbers"),
        ({"cores": [4096]}, "cores must be a list of core numbers"),
        ({"cores": "0"}, "cores must be a list of core numbers"),
        ({"cores": [None]}, "cores must be a list of core numbers"),
        ({"cores": list(range(17))}, "17 workers are too many"),
        ({"component_cores": [0.5]}, "component_cores must be a list of core numbers"),
        ({"component_cores": [2, 2]}, "component_cores names a core twice"),
        ({"profile": "fast"}, "there is no profile 'fast'"),
        ({"number": 2}, "there is no 'number' of workers"),
    ],
)
def test_what_cannot_be(asked: dict[str, Any], message: str) -> None:
    error = fault(workers=asked)
    assert error.code == "worker.invalid"
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"cores": []}, "plan.worker.cores"),
        ({"cores": [None] * 17}, "plan.worker.cores"),
        ({"cores": [1, 1]}, "plan.worker.cores"),
        ({"cores": [4096]}, "plan.worker.cores"),
        ({"component_cores": [0, 0]}, "plan.worker.component_cores"),
        ({"component_cores": [-1]}, "plan.worker.component_cores"),
        ({"profile": "fast"}, "plan.worker.profile"),
    ],
)
def test_the_supervisor_checks_again(change: dict[str, Any], part: str) -> None:
    document = make().to_json()
    document["worker"] |= change
    with pytest.raises(CovenError, match=r"\[plan.invalid\]") as caught:
        InstancePlan.from_json(document)
    assert caught.value.where
    assert str(caught.value.where.part).startswith(part)


def test_a_file_is_written_by_one_worker() -> None:
    error = fault(bindings={"lan": GEN, "wan": FILE}, workers={"count": 2})
    assert (error.code, str(error.where)) == ("worker.invalid", "port wan")
    assert make(bindings={"lan": GEN, "wan": FILE}).worker.cores == (None,)
    # whose packets come from a capture go to worker 0 alone
    make(bindings={"lan": FILE, "wan": FILE | {"out": "/captures/b.pcap"}}, workers={"count": 2})
    make(bindings={"lan": GEN, "wan": {"tool": "pcap"}}, workers={"count": 2})
    document = make(bindings={"lan": GEN, "wan": FILE}).to_json()
    document["worker"]["cores"] = [None, None]
    with pytest.raises(CovenError, match=r"writes a capture file, which only one worker can.*\[plan.invalid\]"):
        InstancePlan.from_json(document)


def test_a_tool_that_cannot_divide_is_refused() -> None:
    afxdp = {"tool": "afxdp", "interface": "eth1"}
    error = fault(bindings={"lan": afxdp, "wan": "eth2"}, workers={"count": 2})
    assert (error.code, str(error.where)) == ("worker.invalid", "port lan")
    assert make(bindings={"lan": afxdp, "wan": "eth2"}).ports[0].tool == "afxdp"
    # what is left to COVEN is one that can
    assert len(make(bindings={"lan": "eth1", "wan": "eth2"}, workers={"count": 2}).worker.cores) == 2


def test_the_memory_of_all_workers_counts() -> None:
    vnf = parse(VNF + "pool: {buffers: 1048576, buffer_bytes: 8192}\n")
    assert make(vnf).worker.cores == (None,)
    error = fault(vnf=vnf, workers={"count": 2})
    assert (error.code, "come to 17179869184 bytes" in error.message) == ("worker.invalid", True)
    document = make(vnf).to_json()
    document["worker"]["cores"] = [None, None]
    with pytest.raises(CovenError, match=r"(?s)the packet pools of 2 workers.*\[plan.invalid\]"):
        InstancePlan.from_json(document)


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        (WorkerPlan(), ()),
        (WorkerPlan((None, None)), ()),
        (WorkerPlan((2,)), (0, 1, 5)),
        (WorkerPlan((1, 2)), (0, 5)),
        (WorkerPlan((0, 1, 2, 5)), ()),
        (WorkerPlan((2,), component_cores=(1, 2)), (1, 2)),
        (WorkerPlan(component_cores=(5,)), (5,)),
    ],
)
def test_components_get_the_cores_that_no_worker_has(
    plan: WorkerPlan, wanted: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    assert component_cores(plan) == wanted


@given(
    packets=st.integers(0, 5000),
    flows=st.integers(1, 60),
    rate=st.integers(0, 10**6),
    workers=st.integers(1, 16),
)
def test_shares_add_up_and_each_flow_gets_what_is_its(packets: int, flows: int, rate: int, workers: int) -> None:
    fields = {"gen_packets": packets, "gen_flows": flows, "gen_rate": rate, "gen_bytes": 64}
    shares = [share_of(fields, worker, workers) for worker in range(workers)]
    found: dict[int, int] = {}
    numbers: list[int] = []
    for share in shares:
        first, number = share.get("gen_first_flow", 0), share.get("gen_first_packet", 0)
        for n in range(share["gen_packets"]):
            flow = first + n % share["gen_flows"]
            found[flow] = found.get(flow, 0) + 1
            numbers.append(number + n)
    assert found == {flow: (packets - flow + flows - 1) // flows for flow in range(min(flows, packets))}
    assert sorted(numbers) == list(range(packets))
    busy = [share for share in shares if share["gen_packets"]]
    if rate >= flows:
        assert sum(share["gen_rate"] for share in busy) <= rate
    assert all(bool(share["gen_rate"]) == bool(rate) for share in busy)


def test_generators_without_end_number_their_packets_apart() -> None:
    fields = {"gen_packets": ENDLESS, "gen_flows": 4, "gen_rate": 0}
    shares = [share_of(fields, worker, 2) for worker in range(2)]
    assert [share["gen_packets"] for share in shares] == [ENDLESS, ENDLESS]
    assert shares[0]["gen_first_packet"] != shares[1]["gen_first_packet"]
