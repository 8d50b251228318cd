"""Everything that can go wrong, in random order under traffic; COVEN_CHAOS_SECONDS long (`make chaos`), 60 here.

COVEN_CHAOS_SEED, which is printed, gives the same order again.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coven.demo.hosts import end_processes, identity
from coven.demo.platform import Platform
from tests.e2e import chaos
from tests.e2e.appliance import CLIENT, SERVER
from tests.lib.net import Network

SECONDS = float(os.environ.get("COVEN_CHAOS_SECONDS", "60"))
SEED = int(os.environ.get("COVEN_CHAOS_SEED", str(secrets.randbits(32))))
pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.deadline(SECONDS + 240)]


@pytest.fixture
def platform() -> Iterator[Platform]:
    """A platform with a small disk; whatever happens, nothing of it stays."""
    with tempfile.TemporaryDirectory(prefix="coven-chaos-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with chaos.small_disk(folder / "state"):
            running = Platform(folder)
            try:
                running.start()
                yield running
            finally:
                if running.process:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        end_processes(identity(running.process.pid))
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        running.process.wait(timeout=10)


def test_chaos(_namespaces: None, platform: Platform, tmp_path: Path) -> None:
    """At the end all packets are accounted for, all buffers are back, and nothing is there that should not be."""
    print(f"COVEN_CHAOS_SEED={SEED}", flush=True)
    archives = chaos.build_packages(tmp_path)
    with Network() as net:
        run = chaos.Chaos(net, platform, archives, SEED)
        with chaos.Traffic(run.appliance.client, run.appliance.server, CLIENT[0], SERVER[0]) as traffic:
            chaos.run(run, SECONDS)
        assert traffic.twice == []
        chaos.assert_real(run)
        chaos.assert_gone(run)
        assert platform.stop()
