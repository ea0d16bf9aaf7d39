"""Many writers in one directory of a store whose listings lag behind its objects."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from tests.mount.buckets import make_cloud
from tests.support.sidecar import Sidecar, bucket_volume
from tests.support.strict_server import StrictS3Server

WRITERS = 16
FILES = 8
LIFETIME_S = 0.1


@pytest.mark.parametrize("kind", ["strict_s3", "s3"])
def test_what_was_written_is_there(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    cloud = make_cloud(request, monkeypatch, kind)
    if isinstance(cloud.server, StrictS3Server):
        cloud.server.settings(cloud.bucket, list_lag_s=1)
    mount = tmp_path / "m"
    directory = mount / "directory"

    def write(writer: int) -> None:
        written: set[str] = set()
        for number in range(FILES):
            name = f"{writer:02}-{number:02}"
            (directory / f"{name}.tmp").write_bytes(b"%d" % number)
            (directory / f"{name}.tmp").rename(directory / name)
            written.add(name)
            listed = set(os.listdir(directory))
            assert written <= listed
            assert {entry for entry in listed if entry.startswith(f"{writer:02}-")} == written
            assert all((directory / each).stat().st_size for each in written)

    with Sidecar(
        tmp_path / "run",
        [bucket_volume("v", mount, "s3", f"s3://{cloud.bucket}")],
        secrets={"v": cloud.server.credentials_json()},
        options=Options(names_s=LIFETIME_S),
    ):
        directory.mkdir()
        with ThreadPoolExecutor(WRITERS) as threads:
            for done in [threads.submit(write, writer) for writer in range(WRITERS)]:
                done.result()
        for name in os.listdir(directory):
            (directory / name).unlink()
        directory.rmdir()
        assert os.listdir(mount) == []
