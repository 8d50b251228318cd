"""Limits of abi.h that descriptors and plans are checked against; a test compares the two.

The pure parts do not import the C core, so the numbers are written here as well.
"""

from __future__ import annotations

MAX_PORTS = 16
MAX_COMPONENTS = 64
MAX_REPLICAS = 128  # isolated replicas of one worker
MAX_HOPS = 256
MAX_PATHS = 128
MAX_OUTPUTS = 8
MAX_METRICS = 64
NAME_PATTERN = r"^[a-z][a-z0-9-]{0,30}$"

# Not of abi.h, but what one message of the Extended Agent protocol (65536 bytes) leaves room for.
MAX_OPTIONS_BYTES = 32 * 1024
MAX_WORKERS = 16  # of one instance
MIN_BUFFERS, MAX_BUFFERS = 512, 1 << 20
MIN_BUFFER_BYTES, MAX_BUFFER_BYTES = 2048, 1 << 17
MAX_POOL_BYTES = 8 << 30
MAX_FLOWS = 1 << 24
MAX_STATE_BYTES = 65536
KEY_PATTERN = r"^[a-z][a-z0-9_-]{0,30}$"  # metrics, operations, arguments, options, parameters
