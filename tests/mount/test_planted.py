"""What an earlier run or another container planted where the sidecar makes and mounts things."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Options
from sidecar.contract.pod import ALIVE_FILE, READY_FILE
from sidecar.contract.spec import StoreSource
from sidecar.mounter.system import mounts
from tests.mount.buckets import bucket_sidecar, refused
from tests.support import planted
from tests.support.clouds import Cloud
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

EXIT_MOUNT = 3
SECRET = "what nobody may change"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the node that no path of the spec names, with one file."""
    place = tmp_path / "outside"
    place.mkdir(mode=0o700)
    (place / "file").write_text(SECRET)
    return place


def untouched(outside: Path) -> bool:
    status = outside.stat()
    below = [mount.path for mount in mounts.mounted() if mount.path.startswith(str(outside))]
    return (
        below == []
        and os.listdir(outside) == ["file"]
        and (outside / "file").read_text() == SECRET
        and (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700)
    )


def at(sidecar: Sidecar, path: Path) -> Sidecar:
    """The same sidecar with its bucket at another path."""
    volume = replace(sidecar.spec.volumes[0], path=str(path))
    sidecar.spec = replace(sidecar.spec, volumes=(volume,))
    sidecar.spec_text = sidecar.spec.to_json()
    return sidecar


# --- links on the way --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["a", "a/b", "a/b/c"])
def test_nothing_is_mounted_through_a_link(
    tmp_path: Path, s3: Cloud, outside: Path, place: str
) -> None:
    link, mountpoint = tmp_path / "m" / place, tmp_path / "m/a/b/c"
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    refused(
        at(bucket_sidecar(tmp_path, s3), mountpoint),
        EXIT_MOUNT,
        f"error SC1086 STATE_UNUSABLE: cannot make the mountpoint `{mountpoint}`: `{link}` is a "
        "symbolic link, and no path of the sidecar may have one; remove it, or name the "
        "directory that it leads to",
    )
    assert untouched(outside)
    assert link.is_symlink()


def test_the_shared_root_is_reached_without_links(tmp_path: Path, s3: Cloud, outside: Path) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    sidecar.shared.symlink_to(outside)
    refused(
        sidecar,
        EXIT_MOUNT,
        "error SC1086 STATE_UNUSABLE: cannot prepare the state and shared directories: "
        f"`{sidecar.shared}` is a symbolic link, and no path of the sidecar may have one; remove "
        "it, or name the directory that it leads to",
    )
    assert untouched(outside)


@pytest.mark.parametrize("place", ["state", "state/metrics", "state/status.json"])
def test_the_state_is_kept_without_links(
    tmp_path: Path, s3: Cloud, outside: Path, place: str
) -> None:
    """What is made anew takes the place of a link; the directory itself does not."""
    sidecar = bucket_sidecar(tmp_path, s3)
    link = sidecar.directory / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(outside / "file" if place.endswith(".json") else outside)
    try:
        if place != "state":
            sidecar.start()
            assert sidecar.stop() == 0
        else:
            refused(sidecar, EXIT_MOUNT, r"error SC1086 .* is a symbolic link, and no path .*")
        assert untouched(outside)
    finally:
        sidecar.clean_up()


def test_a_mount_is_renewed_in_its_place_whatever_its_path_leads_to_now(
    tmp_path: Path, s3: Cloud, outside: Path
) -> None:
    """Somebody who may write beside the mountpoint renames its directory, and plants a link."""
    s3.write("file", b"of the bucket")
    (outside / "c").mkdir()
    parent, moved = tmp_path / "m", tmp_path / "moved"
    sidecar = at(bucket_sidecar(tmp_path, s3, options=Options(healing="remount")), parent / "c")
    with sidecar:
        pid = sidecar.volume_status("train")["worker_pid"]
        parent.rename(moved)
        parent.symlink_to(outside)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: sidecar.volume_status("train")["healed"]["remount"], "mounted anew")
        assert (moved / "c/file").read_bytes() == b"of the bucket"
        assert os.listdir(outside / "c") == []
        assert sidecar.stop() == 0
    below = [mount.path for mount in mounts.mounted() if mount.path.startswith(f"{tmp_path}/")]
    assert below == []
    assert (outside / "c").is_dir()
    assert "Traceback" not in sidecar.log()


# --- what is written there while it runs ---------------------------------------------------------


def test_a_new_worker_serves_what_the_first_one_was_told(tmp_path: Path, s3: Cloud) -> None:
    s3.write("file", b"of the volume")
    s3.write("private/file", b"of another prefix")
    sidecar = bucket_sidecar(tmp_path, s3)
    volume = sidecar.spec.volumes[0]
    assert isinstance(volume.source, StoreSource)
    elsewhere = replace(volume.source, url=f"{volume.source.url}/private", prefix="private/")
    other = replace(sidecar.spec, volumes=(replace(volume, source=elsewhere),))
    with sidecar:
        (sidecar.state / "spec.json").write_text(other.to_json())
        os.kill(sidecar.volume_status("train")["worker_pid"], signal.SIGKILL)
        wait_until(lambda: sidecar.volume_status("train")["healed"]["resend"], "healed")
        assert (tmp_path / "m/file").read_bytes() == b"of the volume"
        assert sidecar.stop() == 0


def test_a_link_in_place_of_the_status_is_not_served(tmp_path: Path, s3: Cloud) -> None:
    login = tmp_path / "run/secrets/train/key.json"
    sidecar = bucket_sidecar(tmp_path, s3)
    with sidecar:
        login.parent.mkdir(parents=True, exist_ok=True)
        fields = {"password": "s3cret", "http_port": sidecar.status()["http_port"]}
        login.write_text(json.dumps(fields))
        (sidecar.state / "status.json").unlink()
        (sidecar.state / "status.json").symlink_to(login)
        status, body = sidecar.get("/statusz")
        assert (status, "s3cret" in body) == (500, False)
        assert sidecar.stop() == 0


# --- what stands where files are made ----------------------------------------------------------


REPLACED = [
    planted.fifo,
    planted.unix_socket,
    planted.link,
    planted.hard_link,
    planted.device,
]


@pytest.mark.parametrize("plant", REPLACED)
@pytest.mark.parametrize("place", ["shared/.sidecar/ready", "state/status.json", "state/shown"])
def test_what_stands_in_place_of_a_file_is_replaced(
    tmp_path: Path, s3: Cloud, outside: Path, plant: planted.Plant, place: str
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    path = sidecar.directory / place
    path.parent.mkdir(parents=True)
    for taken in (path, path.with_name(f"{path.name}.new")):
        plant(taken, outside / "file")
    sidecar.start(wait=False)
    try:
        # Not that it exists, which the planted one does.
        sidecar.wait_for(lambda: "msg=ready" in sidecar.log())
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode)
        assert status.st_nlink == 1
        assert sidecar.stop() == 0
    finally:
        sidecar.clean_up()
    assert untouched(outside)
    assert sidecar.mounted() == []
    assert "Traceback" not in sidecar.log()


@pytest.mark.parametrize("plant", [*REPLACED, planted.directory])
def test_what_stands_in_place_of_what_probes_look_at_is_replaced(
    tmp_path: Path, s3: Cloud, outside: Path, plant: planted.Plant
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    files = [sidecar.state / name for name in (ALIVE_FILE, READY_FILE)]
    sidecar.state.mkdir()
    for file in files:
        plant(file, outside / "file")

    def renewed() -> bool:
        return all(file.is_file() and file.stat().st_size == 0 for file in files)

    with sidecar:
        wait_until(renewed, "the files of the probes")
        assert sidecar.stop() == 0
    assert untouched(outside)


@pytest.mark.parametrize("name", ["ready", "ready.new"])
def test_a_directory_in_place_of_the_ready_file_is_one_line(
    tmp_path: Path, s3: Cloud, outside: Path, name: str
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    path = sidecar.shared / ".sidecar" / name
    planted.directory(path, outside)
    sidecar.start(wait=False)
    try:
        assert sidecar.wait() == EXIT_MOUNT
        assert sidecar.mounted() == []
        assert len(sidecar.said()) == 1, sidecar.log()
        assert re.fullmatch(
            "error SC1086 STATE_UNUSABLE: cannot prepare the state and shared directories: "
            f"`{path}` is a directory; remove it",
            sidecar.said()[0],
        )
        assert "Traceback" not in sidecar.log()
    finally:
        sidecar.clean_up()


def test_a_directory_that_appears_in_place_of_the_ready_file_leaves_no_mount(
    tmp_path: Path, s3: Cloud, outside: Path
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    with sidecar:
        ready = sidecar.shared / ".sidecar/ready"
        ready.unlink()
        planted.directory(ready, outside)
        assert sidecar.stop() == 0
        assert sidecar.mounted() == []
    assert "Traceback" not in sidecar.log()


@pytest.mark.parametrize("place", ["status.json", "status.json.new", "metrics", "shown"])
def test_a_directory_in_the_state_that_is_no_file_of_ours_is_removed(
    tmp_path: Path, s3: Cloud, outside: Path, place: str
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3)
    planted.directory(sidecar.state / place, outside)
    (sidecar.state / place / "inner/link").symlink_to(outside)
    with sidecar:
        assert sidecar.status()["ready"]
        assert sidecar.get("/startupz")[0] == 200
        assert sidecar.stop() == 0
    assert untouched(outside)


@pytest.mark.parametrize("plant", REPLACED)
def test_a_termination_message_that_is_no_file_is_not_written(
    tmp_path: Path, s3: Cloud, outside: Path, plant: planted.Plant
) -> None:
    sidecar = bucket_sidecar(tmp_path, s3, bucket="no-such-bucket")
    message = sidecar.termination_message
    path = message.with_name("planted")
    plant(path, outside / "file")
    roots = replace(sidecar.spec.roots, termination_message=str(path))
    sidecar.spec = replace(sidecar.spec, roots=roots)
    sidecar.spec_text = sidecar.spec.to_json()
    sidecar.start(wait=False)
    try:
        assert sidecar.wait() == EXIT_MOUNT
    finally:
        sidecar.clean_up()
    if plant is not planted.hard_link:  # a file like any other, which the kubelet made
        assert untouched(outside)
