"""What each of several workers gets of something that is made, not received: the packets of the tool gen."""

from __future__ import annotations

from collections.abc import Mapping

ENDLESS = 2**64 - 1  # packets of a generator that never ends
NUMBERS = 1 << 56  # packet numbers apart, of workers whose generators never end


def share_of(fields: Mapping[str, int], worker: int, workers: int) -> dict[str, int]:
    """Give a worker's fields of coven_plan_port: a generator's flows are dealt out in blocks, with their packets.

    A flow belongs to one worker: with fewer flows than workers some make nothing. Each flow gets the packets it
    would get from one worker, the shares of packets and rate add up to the whole, and no packet number is there twice.
    Fields of other tools stay as they are.
    """
    out = dict(fields)
    if workers == 1 or "gen_flows" not in fields:
        return out
    flows, packets, rate = max(fields["gen_flows"], 1), fields["gen_packets"], fields["gen_rate"]
    first, end = flows * worker // workers, flows * (worker + 1) // workers
    out["gen_flows"] = max(end - first, 1)
    out["gen_first_flow"] = first
    if first == end:
        return {**out, "gen_packets": 0, "gen_first_packet": 0}
    if rate:
        out["gen_rate"] = max(rate * end // flows - rate * first // flows, 1)
    if packets == ENDLESS:
        out["gen_first_packet"] = NUMBERS * worker
    else:
        out["gen_first_packet"] = _packets_before(packets, flows, first)
        out["gen_packets"] = _packets_before(packets, flows, end) - out["gen_first_packet"]
    return out


def _packets_before(packets: int, flows: int, flow: int) -> int:
    """Give how many of the packets belong to flows below `flow`, when packet n is of flow n % flows."""
    return packets // flows * flow + min(packets % flows, flow)
