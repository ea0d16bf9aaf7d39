"""A long run of all workloads at once, on a strict S3, while workers are killed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Times
from tests.support.clouds import S3Cloud
from tests.support.killer import Killer
from tests.support.strict_server import StrictS3Server
from tests.writing import writers
from tests.writing.buckets import SMALL_PARTS, VOLUME, Mounted, mounted
from tests.writing.test_kills import Writer

PAUSE_S = 5.0
SHORT_KILLS = 3
SOAK_MINUTES = float(os.environ.get("MOUNT_SIDECAR_SOAK_MINUTES", "30"))


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mounted]:
    times, options = Times(ready_timeout_s=60), replace(SMALL_PARTS, save_s=10)
    with mounted(
        request, tmp_path, "s3", server_fixture="strict_s3_server", times=times, options=options
    ) as found:
        yield found


@pytest.mark.parametrize(
    "kills",
    [
        pytest.param(SHORT_KILLS, id="short"),
        pytest.param(int(SOAK_MINUTES * 60 / PAUSE_S), id="soak", marks=pytest.mark.soak),
    ],
)
def test_no_error_no_loss_nothing_left(
    place: Mounted,
    strict_s3_server: StrictS3Server,
    kills: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directories = {workload: place.fresh_directory() for workload in writers.WORKLOADS}
    rounds: dict[str, int] = {}
    expected: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        running = {
            workload: stack.enter_context(Writer(workload, directory))
            for workload, directory in directories.items()
        }
        killer = Killer(place.sidecar, VOLUME, kills, pause_s=PAUSE_S)
        stack.enter_context(killer)
        while killer.busy:
            for writer in running.values():
                writer.check()
        for workload, writer in running.items():
            rounds[workload], expected[workload] = writer.finish()
    healed = place.sidecar.volume_status(VOLUME)["healed"]
    assert (killer.killed, healed["remount"]) == (kills, 0)
    assert place.sidecar.stop() == 0
    for workload, directory in directories.items():
        found = place.objects(directory)
        if workload == "database":
            check_database(found["base.db"], place.local / "copy.db", rounds[workload])
            continue
        digests = {path: hashlib.sha256(content).hexdigest() for path, content in found.items()}
        assert digests == expected[workload], workload
    assert isinstance(place.cloud, S3Cloud)
    assert not strict_s3_server.client()._list_multipart_uploads(place.cloud.bucket).uploads
    keys = [key for key in place.cloud.keys() if not key.endswith("/")]  # noqa: SIM118
    assert len(keys) == sum(map(len, expected.values())) + 1  # the database
    (place.local / "log").write_text(place.sidecar.log())
    warnings = [line for line in place.sidecar.log().splitlines() if is_unexpected(line)]
    assert warnings == []
    with capsys.disabled():
        refusals = dict(strict_s3_server.counts().refusals)
        print(f"\n    {kills} kills, rounds {rounds}, refusals of the store {refusals}", end=" ")


def is_unexpected(line: str) -> bool:
    """Whether a line of the log is a warning, but not of a killed worker."""
    return " level=info " not in line and 'msg="worker lost"' not in line


def check_database(content: bytes, copy: Path, rounds: int) -> None:
    copy.write_bytes(content)
    with sqlite3.connect(copy) as base:
        assert base.execute("pragma integrity_check").fetchone() == ("ok",)
        assert base.execute("select count(*) from t").fetchone() == (rounds * 10,)
    base.close()
