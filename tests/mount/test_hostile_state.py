"""A whole sidecar on a state directory in which somebody else has put things."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.buckets import bucket_sidecar
from tests.support.clouds import Cloud

SECRET = b"what nobody may read, change or delete"


@pytest.mark.parametrize("planted", ["inside", "instead"])
def test_it_starts_saves_and_touches_nothing_outside(
    tmp_path: Path, s3: Cloud, planted: str
) -> None:
    """Things inside the volume's directory, or a link instead of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "00000000.data").write_bytes(SECRET)
    sidecar = bucket_sidecar(tmp_path, s3)
    own = sidecar.state / "data-train"
    if planted == "inside":
        own.mkdir(parents=True)
        os.mkfifo(own / "journal")
        (own / "journal.new").symlink_to(outside / "00000000.data")
        (own / "probe").mkdir()
        (own / "spool").symlink_to(outside)
    else:
        sidecar.state.mkdir(parents=True)
        own.symlink_to(outside)
    with sidecar:
        (tmp_path / "m/file").write_bytes(b"saved")
        assert sidecar.stop() == 0
    assert s3.read("file") == b"saved"
    assert [path.name for path in outside.iterdir()] == ["00000000.data"]
    assert (outside / "00000000.data").read_bytes() == SECRET
    assert (own / "journal").is_file()
    assert not own.is_symlink()
