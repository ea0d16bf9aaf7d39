"""Ceph's RADOS gateway on loopback: an S3 that shares no code with AWS or MinIO.

One node: a monitor, an object storage daemon (OSD) on a sparse file, and the gateway. Pools
have one replica. There is no manager, which only does statistics and balancing. The programs
are below ``.tools/ceph``, from ``scripts/install.sh soak``.
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from sidecar.units import GIB
from tests.support.servers import (
    HOST,
    READY_TIMEOUT_S,
    REPOSITORY,
    S3Server,
    ServerFailed,
    ToolMissing,
    end,
    free_port,
    spawn,
)

ROOT = REPOSITORY / ".tools" / "ceph"
DISK_BYTES = 64 * GIB
"""Size of the OSD's sparse file; only written bytes use disk space."""
DIFFERENCES = {
    "tests/store/test_provisional.py::test_a_server_that_names_a_version_once_is_asked_once": (
        "16.2, not 18.2, says no ETag when an upload is completed: a HEAD asks for it"
    ),
}
"""Tests that may fail on it, and why; see docs/decisions/0027-ceph-s-gateway.md."""
_CLIENT = "client.gateway"
_END_S = 30.0
"""Before it ends, an OSD writes its memory to disk."""
_ADMIN_TIMEOUT_S = 300.0
"""The first command waits for the OSD and creates the gateway's pools."""

_CONFIGURATION = """\
[global]
fsid = {fsid}
mon host = v2:{host}:{port}
mon initial members = a
public addr = {host}
cluster addr = {host}
ms bind msgr1 = false
keyring = {directory}/keyring
mon data = {directory}/mon
osd data = {directory}/osd
run dir = {directory}
admin socket =
log file = {directory}/$name.log
auth allow insecure global id reclaim = false

# One copy of everything, on one OSD.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
bluestore block size = {disk_bytes}
osd memory target = 939524096

osd class dir = {libraries}/rados-classes
erasure code dir = {libraries}/ceph/erasure-code
plugin dir = {libraries}/ceph

# A machine that is busy is not broken: without these an OSD that gets no CPU for a while is taken
# for dead, by the monitor or by its own threads, and ends.
osd heartbeat grace = 3600
mon osd report timeout = 3600
osd op thread timeout = 3600
osd op thread suicide timeout = 36000
osd command thread timeout = 3600
osd command thread suicide timeout = 36000
osd max markdown count = 100000
mon lease = 60
mon data avail warn = 1
mon data avail crit = 0
rgw init timeout = 300
debug rocksdb = 0/0
"""

_COMMAND = """\
import rados, sys
cluster = rados.Rados(conffile=sys.argv[1])
cluster.connect(timeout=60)
status, _, message = cluster.mon_command(sys.argv[2], b"", timeout=60)
cluster.shutdown()
sys.exit(status and message)
"""
"""Does the work of the ``ceph`` command without the packages that it needs."""


class CephServer(S3Server):
    """The gateway with its monitor and OSD. All buckets belong to one user.

    Raises:
        ToolMissing: it is not installed.
    """

    def __init__(self, directory: Path, *, secret_access_key: str = "test-secret-key-1") -> None:
        super().__init__(directory, secret_access_key=secret_access_key)
        found = sorted(ROOT.glob("usr/lib/*/rados-classes"))
        if not found:
            raise ToolMissing("Ceph is not installed; run `scripts/install.sh soak`")
        self._libraries = found[0].parent
        self._configuration = directory / "ceph.conf"
        self._daemons: list[subprocess.Popen[bytes]] = []
        if not self._configuration.exists():
            self._make_monitor()

    def start(self) -> Self:
        """Start all daemons and wait until the gateway answers: 10 to 30 s."""
        try:
            self._start_daemon("ceph-mon", "-i", "a")
            if not (self.directory / "osd").exists():
                self._make_osd()
            self._start_daemon("ceph-osd", "-i", "0")
            made = self.directory / "user"
            if not made.exists():
                self._make_user()
                made.touch()
            return super().start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all daemons, the gateway first; the data stays."""
        super().stop()
        while self._daemons:
            end(self._daemons.pop(), _END_S)

    def command(self) -> Sequence[str]:
        """The gateway in the foreground."""
        frontend = f"beast endpoint={HOST}:{self.port}"
        return self._program("radosgw", "-f", "-n", _CLIENT, "--rgw-frontends", frontend)

    def environment(self) -> dict[str, str]:
        """Paths of the unpacked libraries."""
        folders = [self._libraries, self._libraries / "ceph", ROOT / "lib" / self._libraries.name]
        return {
            "LD_LIBRARY_PATH": os.pathsep.join(map(str, folders)),
            "PYTHONPATH": str(ROOT / "usr/lib/python3/dist-packages"),
        }

    def _program(self, name: str, *arguments: str) -> list[str]:
        return [str(ROOT / "usr/bin" / name), "-c", str(self._configuration), *arguments]

    def _run(self, command: Sequence[str], timeout_s: float = READY_TIMEOUT_S) -> None:
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        if done.returncode:
            raise ServerFailed(f"{command[0]} failed: {done.stdout}{done.stderr}"[-2000:])

    def _start_daemon(self, name: str, *arguments: str) -> None:
        log = self.directory / f"{name}.out"
        self._daemons.append(spawn(self._program(name, "-f", *arguments), self.environment(), log))

    def _make_monitor(self) -> None:
        """Write the configuration, the keys, and the monitor's database."""
        port, fsid = free_port(), str(uuid.uuid4())
        self._configuration.write_text(
            _CONFIGURATION.format(
                fsid=fsid,
                host=HOST,
                port=port,
                directory=self.directory,
                disk_bytes=DISK_BYTES,
                libraries=self._libraries,
            )
        )
        keyring, monitors = str(self.directory / "keyring"), str(self.directory / "monitors")
        for name, monitor, osd in (
            ("mon.", "allow *", ""),
            ("client.admin", "allow *", "allow *"),
            ("osd.0", "allow profile osd", "allow *"),
            (_CLIENT, "allow *", "allow *"),
        ):
            rights = ["--cap", "mon", monitor, *(["--cap", "osd", osd] if osd else [])]
            known = [] if Path(keyring).exists() else ["--create-keyring"]
            tool = str(ROOT / "usr/bin/ceph-authtool")
            self._run([tool, keyring, *known, "--gen-key", "-n", name, *rights])
        tool = str(ROOT / "usr/bin/monmaptool")
        address = f"[v2:{HOST}:{port}]"
        self._run([tool, "--create", "--fsid", fsid, "--addv", "a", address, monitors])
        (self.directory / "mon").mkdir()
        database = ["--mkfs", "--monmap", monitors, "--keyring", keyring]
        self._run(self._program("ceph-mon", "-i", "a", *database))

    def _make_osd(self) -> None:
        number = str(uuid.uuid4())
        command = json.dumps({"prefix": "osd new", "uuid": number})
        # Debian's Python: the package's module is built for it.
        python = ["/usr/bin/python3", "-c", _COMMAND]
        self._run([*python, str(self._configuration), command], 2 * READY_TIMEOUT_S)
        (self.directory / "osd").mkdir()
        self._run(self._program("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", number))

    def _make_user(self) -> None:
        keys = ["--access-key", self.access_key_id, "--secret-key", self.secret_access_key]
        who = ["--uid", "tests", "--display-name", "tests", "--max-buckets", "0"]
        command = self._program("radosgw-admin", "user", "create", *who, *keys)
        self._run(command, _ADMIN_TIMEOUT_S)
