"""What a pod's mounts mean to the kernel: a real sidecar, and the binds that a kubelet makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sidecar.contract.spec import Volume
from tests.mount.buckets import make_cloud
from tests.support.sidecar import Sidecar

SCRIPT = """
set -e
shared=$1 experiment=$2 own=$3
mkdir -p "$experiment" "$own"
mount --rbind "$shared" "$experiment"
mount --make-rslave "$experiment"
mount -o remount,bind,ro "$experiment"
mount --bind "$shared/outputs/models" "$own"
if touch "$experiment/beside" 2>/dev/null; then echo "a file beside the mounts"; exit 1; fi
if touch "$experiment/.sidecar/ready" 2>/dev/null; then echo "the ready file"; exit 1; fi
echo shared > "$experiment/outputs/models/through-shared"
echo own > "$own/user/project/1/through-own-path"
"""


def test_an_experiment_writes_into_the_buckets_and_nowhere_else(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The shared directory is read-only to it, and a bucket has a path of its own there, where the
    sidecar has nothing."""
    cloud = make_cloud(request, monkeypatch, "s3")
    run = tmp_path / "run"
    path = "/outputs/of-the-experiment"
    volume = Volume(
        name="models",
        kind="outputs",
        path=path,
        mountpoint=str(run / "shared" / "outputs" / "models"),
        source=cloud.source(),
    )
    sidecar = Sidecar(
        run,
        [volume],
        secrets={"cloud": cloud.server.credentials_json()},
        outputs_path=Path(path) / "user" / "project" / "1",
    )
    with sidecar:
        folders = [str(sidecar.shared), str(tmp_path / "experiment"), str(tmp_path / "own")]
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", SCRIPT, "sh", *folders],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert not Path(path).exists()
        assert sidecar.stop() == 0
    assert cloud.read("through-shared") == b"shared\n"
    assert cloud.read("user/project/1/through-own-path") == b"own\n"
