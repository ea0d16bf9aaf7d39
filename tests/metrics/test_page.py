"""The metrics page of a running sidecar, after reads, writes and errors."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.options import Options, TransportName
from sidecar.units import MIB
from tests.mount.buckets import TRANSPORTS, bucket_sidecar, make_cloud
from tests.support.servers import Server, find_program
from tests.support.sidecar import Sidecar

UNITS = ("_bytes", "_seconds", "_total", "_handles", "_parts", "_ratio")
FLAGS = {"mount_sidecar_ready", "mount_sidecar_mount_state"}
"""Metrics without a unit: their values are 0 or 1."""


def metric_names(page: str) -> set[str]:
    return set(re.findall(r"^# TYPE (\S+) ", page, re.MULTILINE))


def is_saved(descriptor: int) -> bool:
    """Whether the store takes it by now: its budget for an outage is short."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False
    return True


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_page_counts_what_happened_and_promtool_accepts_it(
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    transport: TransportName,
) -> None:
    cloud = make_cloud(request, monkeypatch, "s3")
    content = os.urandom(4 * MIB)
    cloud.write("read", content)
    options = Options(retry_s=1)
    with bucket_sidecar(tmp_path, cloud, options=options, transport=transport) as sidecar:
        mount = tmp_path / "m"
        assert (mount / "read").read_bytes() == content
        (mount / "written").write_bytes(content[:MIB])
        with (mount / "open").open("wb", buffering=0) as file:
            file.write(b"dirty")
            # Gauges are updated every second.
            sidecar.wait_for(lambda: total(sidecar, "dirty_bytes") == 5)
            assert total(sidecar, "open_handles") == 1
            with away(cloud.server), pytest.raises(OSError, match=r"Errno 5"):
                os.fsync(file.fileno())
            sidecar.wait_for(lambda: is_saved(file.fileno()))
        with (mount / "streamed").open("wb", buffering=0) as file:
            file.write(bytes(12 * MIB))  # the second part of two, and not the first
            sidecar.wait_for(lambda: total(sidecar, "spool_memory_used_bytes") == 8 * MIB)
        sidecar.wait_for(lambda: total(sidecar, "open_handles") == 0)

        assert total(sidecar, "read_bytes_total") >= len(content)
        assert total(sidecar, "fetched_bytes_total") >= len(content)
        assert total(sidecar, "written_bytes_total") == 13 * MIB + 5
        assert total(sidecar, "uploaded_bytes_total") == 13 * MIB + 5
        assert total(sidecar, "dirty_bytes") == 0
        sidecar.wait_for(lambda: total(sidecar, "spool_used_bytes") == 0)
        assert total(sidecar, "spool_memory_used_bytes") == 0
        assert total(sidecar, "cache_hits_total") + total(sidecar, "cache_misses_total") > 0
        for operation in ("read", "write", "create", "open", "fsync"):
            assert total(sidecar, "operation_duration_seconds_count", operation=operation) > 0
        assert total(sidecar, "operation_errors_total", operation="fsync", code="SC1047") > 0
        for operation in ("list", "get", "put"):
            assert total(sidecar, "store_request_duration_seconds_count", operation=operation) > 0
        assert total(sidecar, "store_request_errors_total", operation="put", code="SC1047") > 0
        assert total(sidecar, "store_retries_total", operation="put", reason="connection") > 0
        assert total(sidecar, "mount_state", volume="data/train", state="serving") == 1
        assert total(sidecar, "ready") == 1
        assert total(sidecar, "time_to_ready_seconds") > 0

        status, page = sidecar.get("/metrics")
        assert status == 200
        assert sidecar.stop() == 0

    checked = subprocess.run(
        [find_program("promtool", install="apt-get install prometheus"), "check", "metrics"],
        input=page,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
    names = metric_names(page)
    assert len(names) > 15
    for name in names:
        assert name.startswith("mount_sidecar_")
        assert name.endswith(UNITS) or name in FLAGS, name
    samples = [line for line in page.splitlines() if line and not line.startswith("#")]
    about_all = {"mount_sidecar_ready", "mount_sidecar_time_to_ready_seconds"}
    for sample in samples:
        assert 'volume="data/train"' in sample or sample.split(" ")[0] in about_all, sample


@contextlib.contextmanager
def away(server: Server) -> Iterator[None]:
    """Stop the server inside the block."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def total(sidecar: Sidecar, name: str, **labels: str) -> float:
    return sidecar.metric(f"mount_sidecar_{name}", **labels)
