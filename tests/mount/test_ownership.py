"""Files belong to the user that creates them, on each cloud, also after the next mount."""

from __future__ import annotations

import errno
import os
import signal
import stat
from pathlib import Path

from sidecar.contract.options import TransportName
from sidecar.contract.spec import ANYBODY, Access, Volume
from tests.conformance.programs import User, as_user
from tests.support.clouds import Cloud
from tests.support.servers import MinioServer
from tests.support.sidecar import Sidecar

RUN = "user/project/experiments/1"
ONE = User(1000, 1001)
TWO = User(2000, 2001)
TEAM = 3000
LEARNS = """
os.mkdir('checkpoints')
with open('checkpoints/step.tmp', 'w') as file:
    file.write('weights')
    os.fsync(file.fileno())
os.rename('checkpoints/step.tmp', 'checkpoints/step')
open('log', 'w').write('one')
os.symlink('checkpoints/step', 'last')
"""
MADE = ("log", "last", "checkpoints/step", "checkpoints")


def outputs_sidecar(directory: Path, cloud: Cloud, access: Access, **settings: object) -> Sidecar:
    """A sidecar with one bucket at ``m`` for the outputs of a run."""
    mountpoint = directory / "m"
    volume = Volume(name="models", kind="outputs", path=str(mountpoint), source=cloud.source())
    return Sidecar(
        directory / "run",
        [volume],
        secrets={"cloud": cloud.server.credentials_json()},
        outputs_path=mountpoint / RUN,
        access=access,
        **settings,
    )


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def end_worker(sidecar: Sidecar) -> None:
    """SIGKILL the worker, and wait for the next one."""
    before = sidecar.volume_status("models")["healed"]
    os.kill(sidecar.volume_status("models")["worker_pid"], signal.SIGKILL)
    sidecar.wait_for(lambda: sidecar.volume_status("models")["healed"] != before)
    sidecar.wait_for(lambda: sidecar.volume_status("models")["state"] == "serving")


def test_a_user_whom_nobody_knew(tmp_path: Path, cloud: Cloud, transport: TransportName) -> None:
    """An image with ``USER 1000`` in a pod without runAsUser."""
    # JuiceFS's gateway keeps no metadata of a directory's object.
    made = MADE[:-1] if isinstance(cloud.server, MinioServer) else MADE
    with outputs_sidecar(tmp_path / "1", cloud, ANYBODY, transport=transport) as sidecar:
        run = tmp_path / "1/m" / RUN
        assert mode(run) == 0o777
        assert as_user(LEARNS, run, ONE) == 0
        assert [owner(run / name) for name in MADE] == [(1000, 1001)] * len(MADE)
        assert as_user("open('log', 'a')", run, TWO) == errno.EACCES
        end_worker(sidecar)
        assert [owner(run / name) for name in made] == [(1000, 1001)] * len(made)
        assert as_user("open('log', 'a').write(' two')", run, ONE) == 0
        assert sidecar.stop() == 0
    assert cloud.metadata(f"{RUN}/log")["uid"] == "1000"
    with outputs_sidecar(tmp_path / "2", cloud, ANYBODY, transport=transport) as sidecar:
        run = tmp_path / "2/m" / RUN
        assert [owner(run / name) for name in made] == [(1000, 1001)] * len(made)
        assert (run / "log").read_text() == "one two"
        assert mode(run / "log") == 0o644
        assert as_user("open('log', 'a').write(' three')", run, ONE) == 0
        assert as_user("open('log', 'a')", run, TWO) == errno.EACCES
        assert sidecar.stop() == 0


def test_a_known_user_has_the_run_s_directory_alone(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    with outputs_sidecar(tmp_path, s3, Access(uid=1000, gid=1001), transport=transport) as sidecar:
        run = tmp_path / "m" / RUN
        assert (owner(run), mode(run)) == ((1000, 1001), 0o755)
        assert as_user(LEARNS, run, ONE) == 0
        assert as_user("os.mkdir('other')", run, TWO) == errno.EACCES
        assert sidecar.stop() == 0


def test_containers_of_several_users_share_by_their_group(
    tmp_path: Path, s3: Cloud, transport: TransportName
) -> None:
    """``fsGroup`` is a supplementary group of all containers of a pod."""
    access = Access(gid=TEAM, file_mode=0o664, dir_mode=0o2775)
    with outputs_sidecar(tmp_path, s3, access, transport=transport) as sidecar:
        run = tmp_path / "m" / RUN
        assert (owner(run), mode(run)) == ((0, TEAM), 0o2775)
        assert as_user(LEARNS, run, ONE.with_groups(TEAM), umask=0o002) == 0
        assert [owner(run / name) for name in MADE] == [(1000, TEAM)] * len(MADE)
        assert as_user("open('log', 'a').write(' two')", run, TWO.with_groups(TEAM)) == 0
        assert as_user("open('log', 'a')", run, TWO) == errno.EACCES
        assert sidecar.stop() == 0
