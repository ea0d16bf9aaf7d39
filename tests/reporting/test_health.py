"""The port of the sidecar's pages, and clients that mean no good."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sidecar.contract.spec import Http, Volume
from sidecar.units import MIB
from tests.mount.buckets import bucket_sidecar
from tests.reading.buckets import make_bucket
from tests.support.clouds import S3Cloud
from tests.support.many_clients import (
    DrippingClients,
    ReadingClients,
    connect,
    descriptor_count,
    is_closed,
    many_descriptors,
    resident_bytes,
    thread_count,
)
from tests.support.servers import MinioServer, S3Server
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

CLIENTS = 10_000
CONNECTIONS = 128
OTHER_DESCRIPTORS = 40
THREADS = 8
PROBE_TIMEOUT_S = 5
"""As that of the probes of an injected pod."""


@pytest.fixture
def sidecar(tmp_path: Path) -> Iterator[Sidecar]:
    """One that mounts nothing: its port is the same."""
    with Sidecar(tmp_path, []) as running:
        yield running


def health_pid(sidecar: Sidecar) -> int:
    (pid,) = sidecar.children_named("health")
    return pid


def port(sidecar: Sidecar) -> int:
    return int(sidecar.status()["http_port"])


def test_probes_are_answered_while_ten_thousand_clients_drip(sidecar: Sidecar) -> None:
    pid = health_pid(sidecar)
    assert sidecar.get("/metrics")[0] == 200  # what it loads for that is loaded
    before_bytes = resident_bytes(pid)
    with (
        many_descriptors(CLIENTS + 1000),
        DrippingClients(port(sidecar), CLIENTS) as clients,
    ):
        clients.wait_for_rounds(1)
        for _ in range(10):
            assert sidecar.get("/livez") == (200, '{"alive": true}\n')
            assert sidecar.get("/startupz")[0] == 200
            assert descriptor_count(pid) <= CONNECTIONS + OTHER_DESCRIPTORS
            assert thread_count(pid) <= THREADS
            assert resident_bytes(pid) < before_bytes + 16 * MIB
        clients.wait_for_rounds(1)
        assert sidecar.get("/livez")[0] == 200
        assert "too many connections" in sidecar.log()
    wait_until(lambda: descriptor_count(pid) <= OTHER_DESCRIPTORS, "the clients are gone")
    assert resident_bytes(pid) < before_bytes + 8 * MIB
    assert health_pid(sidecar) == pid


def test_probes_are_answered_while_three_hundred_clients_read_metrics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a pod with many buckets and a tenth of a processor, where a page takes a second."""
    with MinioServer(tmp_path / "server") as server:
        server.create_bucket("data")
        with bucket_sidecar(tmp_path, S3Cloud(server, "data")) as sidecar:
            make_pages_slow(sidecar)
            took_s = []
            with ReadingClients(port(sidecar), "/metrics", 300) as clients:
                for _ in range(14):
                    probe = http.client.HTTPConnection(
                        "127.0.0.1", port(sidecar), timeout=PROBE_TIMEOUT_S
                    )
                    began_s = time.monotonic()
                    probe.request("GET", "/livez")
                    assert probe.getresponse().status == 200
                    took_s.append(time.monotonic() - began_s)
                    probe.close()
                    time.sleep(0.2)
            with capsys.disabled():
                print("\nprobes took, in s:", *(f"{seconds:.2f}" for seconds in took_s))
                print("clients of /metrics got:", clients.statuses)
            assert clients.statuses.keys() <= {0, 200, 503}  # 0: dropped for a newcomer
            assert clients.statuses[503]


def make_pages_slow(sidecar: Sidecar) -> None:
    """Give it as many files of metrics as hundreds of volumes would, and no more series."""
    folder = sidecar.state / "metrics"
    for path in list(folder.glob("*.db")):
        for number in range(100):
            shutil.copy(path, folder / f"{path.stem}-{number}.db")


def test_who_connects_while_there_is_no_health_process_waits(sidecar: Sidecar) -> None:
    (server,), pid = sidecar.children_named("fork-server"), health_pid(sidecar)
    os.kill(server, signal.SIGSTOP)  # nobody replaces it for the moment
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: pid not in sidecar.children(), "its end")
    with connect(port(sidecar)) as probe:
        probe.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        os.kill(server, signal.SIGCONT)
        assert probe.recv(12) == b"HTTP/1.1 200"


def test_a_request_that_drips_ends_and_an_idle_connection_too(sidecar: Sidecar) -> None:
    """Each byte comes in time, and the request never ends."""
    dripping, idle = connect(port(sidecar)), connect(port(sidecar))
    served = http.client.HTTPConnection("127.0.0.1", port(sidecar))
    with dripping, idle:
        served.request("GET", "/livez")
        assert served.getresponse().read() == b'{"alive": true}\n'
        assert served.sock is not None
        kept: socket.socket = served.sock
        dripping.sendall(b"GET /livez HTTP/1.1\r\nX-Slow: ")

        def dripped_to_its_end() -> bool:
            try:
                dripping.setblocking(True)
                dripping.send(b"x")
            except OSError:
                return True
            return is_closed(dripping)

        wait_until(dripped_to_its_end, "the request is refused")
        wait_until(lambda: is_closed(idle), "who never asked is sent away")
        wait_until(lambda: is_closed(kept), "who asked once is sent away")
    served.close()


def test_who_reads_no_answer_holds_little_memory(sidecar: Sidecar) -> None:
    pid = health_pid(sidecar)
    sidecar.get("/metrics")
    before_bytes = resident_bytes(pid)
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"
    clients = [connect(port(sidecar)) for _ in range(CONNECTIONS)]
    try:
        for client in clients:
            client.sendall(request * 50)
        for _ in range(5):
            assert sidecar.get("/livez")[0] == 200
            assert resident_bytes(pid) < before_bytes + 16 * MIB
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: descriptor_count(pid) <= OTHER_DESCRIPTORS, "the clients are gone")
    assert sidecar.get("/metrics")[0] == 200


def test_a_supervisor_that_hangs_is_not_alive_and_pages_are_shown(sidecar: Sidecar) -> None:
    os.kill(sidecar.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert sidecar.get("/livez") == (503, '{"alive": false}\n')
            assert sidecar.get("/statusz")[0] == 200
            assert sidecar.get("/metrics")[0] == 200
    finally:
        os.kill(sidecar.pid, signal.SIGCONT)
    wait_until(lambda: sidecar.get("/livez")[0] == 200, "it lives again")


@pytest.mark.parametrize(
    ("host", "reached", "refused"),
    [
        ("127.0.0.2", ["127.0.0.2"], ["127.0.0.1", "::1"]),
        ("::1", ["::1"], ["127.0.0.1"]),
        ("::", ["::1", "127.0.0.1", "127.0.0.2"], []),
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2"], ["::1"]),
        (Http().host, ["::1", "127.0.0.1"], []),
    ],
)
def test_the_address_to_listen_on(
    tmp_path: Path, host: str, reached: list[str], refused: list[str]
) -> None:
    with Sidecar(tmp_path, [], http=Http(host=host, port=0)) as sidecar:
        for address in reached:
            connection = http.client.HTTPConnection(address, port(sidecar), timeout=30)
            connection.request("GET", "/livez", headers={"Connection": "close"})
            assert connection.getresponse().status == 200
            connection.close()
        for address in refused:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port(sidecar)), timeout=30)


def test_an_address_of_no_interface_is_one_line(tmp_path: Path) -> None:
    host = "192.0.2.1"
    sidecar = Sidecar(tmp_path, [], http=Http(host=host, port=0)).start(wait=False)
    try:
        assert sidecar.wait() == 3
    finally:
        sidecar.clean_up()
    (line,) = sidecar.said()
    assert line.startswith(f"error SC1090 PORT_IN_USE: cannot listen on {host} port 0: ")
    assert line.endswith("free the port, or set another in the spec (`http.host`, `http.port`)")


def test_how_many_parts_may_be_on_their_way(tmp_path: Path, s3_server: S3Server) -> None:
    cloud, mount = make_bucket(s3_server), tmp_path / "m"
    volume = Volume(name="out", kind="outputs", path=str(mount), source=cloud.source())
    secrets = {"cloud": s3_server.credentials_json()}
    cloud.write("large", bytes(64 * MIB))
    with Sidecar(tmp_path / "run", [volume], outputs_path=mount, secrets=secrets) as sidecar:
        (mount / "copy").write_bytes((mount / "large").read_bytes())
        (found,) = json.loads(sidecar.get("/statusz")[1])["volumes"]
        limit = found["in_flight_limit_parts"]
        assert limit["write"] >= 8
        assert limit["read"] >= 2
        for direction, number in limit.items():
            name = "mount_sidecar_in_flight_limit_parts"
            assert sidecar.metric(name, volume="outputs/out", direction=direction) == number
