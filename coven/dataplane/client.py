"""A component's side of its replica segment in Python: client.h as a class.

Imports little: every component in Python starts with it.
"""

from __future__ import annotations

import os
from typing import Any

from coven.dataplane.core import ffi, lib
from coven.errors import CovenError

WOKE_PACKETS = 1  # COVEN_WOKE_PACKETS
WOKE_AGENT = 2  # COVEN_WOKE_AGENT


class ReplicaClient:
    """A component's side of its replica segment: the calls of client.h as methods. One thread.

    Memory views that it gives stay mapped until the process ends, whatever happens to the packets in them.
    """

    def __init__(self, replica: int, state: int, pool: int, doorbell: int, worker: int, agent: int) -> None:
        """Map what the descriptors offer (-1: none, for pool and agent). Raises CovenError (platform.internal)."""
        why = ffi.new("char[256]")
        client = lib.coven_client_open(replica, state, pool, doorbell, worker, agent, why, len(why))
        if client == ffi.NULL:
            text = ffi.string(why).decode("utf-8", "replace")
            raise CovenError("platform.internal", f"the replica segment cannot be used: {text}")
        self._client = client
        geometry = ffi.new("struct coven_client_geometry *")
        lib.coven_client_geometry(client, geometry)
        self.outputs: int = geometry.outputs
        self.state_bytes: int = geometry.state_bytes
        self.buffer_bytes: int = geometry.buffer_bytes
        self.replica: int = geometry.replica
        self.burst: Any = lib.coven_client_burst(client)
        self._memory_at = lib.coven_client_memory(client)
        self._states_at = lib.coven_client_state_segment(client)
        self.memory = memoryview(ffi.buffer(self._memory_at, geometry.memory_bytes)).cast("B")
        self.states = memoryview(ffi.buffer(self._states_at, geometry.state_segment_bytes)).cast("B")
        cells = lib.coven_client_metrics(client)
        self.metrics = memoryview(ffi.buffer(cells, 8 * lib.COVEN_MAX_METRICS)).cast("B")

    def receive(self) -> int:
        """Take a burst; how many entries. Raises CovenError when the worker's entries make no sense."""
        n: int = lib.coven_client_receive(self._client, 32)
        if n < 0:
            raise CovenError("platform.internal", f"entry of the in-ring refused: {os.strerror(-n)}")
        lib.coven_client_fetch(self._client)
        return n

    def finish(self) -> None:
        """Stage, commit and publish the burst."""
        lib.coven_client_finish(self._client)

    def wait(self, timeout_ms: int) -> int:
        """Sleep until something comes; COVEN_WOKE_* bits. Raises CovenError when that is not possible."""
        woke: int = lib.coven_client_wait(self._client, timeout_ms)
        if woke < 0:
            raise CovenError("platform.internal", f"waiting failed: {os.strerror(-woke)}")
        return woke

    def state(self, i: int) -> memoryview | None:
        """Shadow half of the flow of entry i."""
        return self._state_view(lib.coven_client_state(self._client, i))

    def state_ending(self, i: int) -> memoryview | None:
        """Current half of the flow that ends with entry i."""
        return self._state_view(lib.coven_client_state_ending(self._client, i))

    def release(self, handle: int, verdict: int, output: int) -> int:
        """Give a held packet back: 0 or negative errno (ENOENT, EAGAIN)."""
        result: int = lib.coven_client_release(self._client, handle, verdict, output)
        return result

    def held_count(self) -> int:
        """How many packets are held."""
        count: int = lib.coven_client_held_count(self._client)
        return count

    def held_meta(self, handle: int) -> tuple[Any, Any]:
        """`struct coven_meta *` and `struct coven_meta_ext *` of a held packet, both NULL when it is not held."""
        return lib.coven_client_held(self._client, handle), lib.coven_client_held_ext(self._client, handle)

    def held_data(self, handle: int) -> int | None:
        """Offset in `memory` of the first byte of a held packet."""
        at = lib.coven_client_held_data(self._client, handle)
        return None if at == ffi.NULL else int(at - self._memory_at)

    def flush(self) -> None:
        """Publish releases outside a burst."""
        lib.coven_client_flush(self._client)

    def last_words(self, text: str) -> None:
        """Leave a sentence for whoever looks at the segment when the process is gone."""
        lib.coven_client_last_words(self._client, text.encode("utf-8", "replace"))

    def _state_view(self, at: Any) -> memoryview | None:
        if at == ffi.NULL:
            return None
        offset = int(ffi.cast("uint8_t *", at) - self._states_at)
        return self.states[offset : offset + self.state_bytes]
