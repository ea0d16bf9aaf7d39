"""A pod that has addresses of IPv6 only: its probes, its store, and a mount."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.spec import Http, Volume
from tests.support.clouds import S3Cloud
from tests.support.sidecar import Sidecar
from tests.support.strict_server import StrictS3Server
from tests.support.waiting import wait_until

POD, STORE, PORT = "fd00::5", "fd00::6", 9000
NETWORK = f"""
ip link set lo up
ip -6 addr add {POD} dev lo nodad
ip -6 addr add {STORE} dev lo nodad
ip -6 route add default dev lo
echo made
read line
"""
ASK = f"""
import http.client
connection = http.client.HTTPConnection("{POD}", 9464, timeout=30)
connection.request("GET", "/livez")
print(connection.getresponse().status)
"""


@pytest.fixture
def inside() -> Iterator[list[str]]:
    """What begins a command in the pod's network. There, as in each pod, loopback has 127.0.0.1."""
    command = ["unshare", "--net", "sh", "-ec", NETWORK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == b"made\n"
        yield ["nsenter", f"--net=/proc/{holder.pid}/ns/net"]


@pytest.fixture
def cloud(tmp_path: Path, inside: list[str]) -> Iterator[S3Cloud]:
    """A bucket on a server in that network."""
    with StrictS3Server(tmp_path / "store") as server:
        server.create_bucket("bucket")
    command = [sys.executable, "-m", "tests.support.strict_s3", "--host", STORE]
    command += ["--port", str(PORT), "--directory", str(server.directory)]
    with subprocess.Popen([*inside, *command], env=server.environment()) as process:
        listens = [*inside, "sh", "-c", f"ss -ltn | grep -q :{PORT}"]
        wait_until(lambda: subprocess.call(listens) == 0, "it listens")
        yield S3Cloud(server, "bucket")
        process.terminate()


def test_a_mount_and_its_probes(tmp_path: Path, inside: list[str], cloud: S3Cloud) -> None:
    path = tmp_path / "m"
    volume = Volume(
        name="train", kind="data", path=str(path), read_only=False, source=cloud.source()
    )
    secret = {**cloud.server.credentials(), "AWS_ENDPOINT_URL": f"http://[{STORE}]:{PORT}"}
    content = bytes(range(256)) * 4000
    secrets = {"cloud": json.dumps(secret)}
    with Sidecar(tmp_path, [volume], secrets=secrets, http=Http(), prefix=inside) as sidecar:
        (path / "file").write_bytes(content)
        assert (path / "file").read_bytes() == content
        status = subprocess.check_output([*inside, sys.executable, "-c", ASK], text=True)
        assert status == "200\n", sidecar.log()
    with cloud.server:
        assert cloud.read("file") == content
