"""`sidecar webhook` as a child process, and a client that speaks TLS to it."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any, Self

from sidecar.control.webhook.certificate import IssuedCertificate, issue_certificate
from tests.control.injection.golden import CATALOGUE, IMAGE
from tests.support.waiting import wait_until

RECORDED = Path(__file__).parents[2] / "fixtures" / "admission"
NAME = "mount-sidecar-webhook.mount-sidecar.svc"
_START_S = 30.0


def recorded(name: str) -> bytes:
    return (RECORDED / f"{name}.json").read_bytes()


def new_pair() -> IssuedCertificate:
    return issue_certificate([NAME], dt.datetime.now(dt.UTC), dt.timedelta(days=90))


class Folder:
    """A folder as the kubelet mounts a ConfigMap or a Secret: its content changes atomically."""

    def __init__(self, path: Path, content: dict[str, bytes]) -> None:
        self.path = path
        path.mkdir()
        self._number = 0
        self.replace(content)
        for name in content:
            (path / name).symlink_to(Path("..data") / name)

    def replace(self, content: dict[str, bytes]) -> None:
        self._number += 1
        version = self.path / f"..{self._number}"
        version.mkdir()
        for name, data in content.items():
            (version / name).write_bytes(data)
        link = self.path / "..data_tmp"
        link.symlink_to(version.name)
        os.replace(link, self.path / "..data")


def tls_files(pair: IssuedCertificate) -> dict[str, bytes]:
    return {"tls.crt": pair.certificate, "tls.key": pair.key}


class Webhook:
    """One server and its two folders; a context manager."""

    def __init__(
        self,
        directory: Path,
        *arguments: str,
        catalogue: bytes | None = None,
        kubeconfig: Path | None = None,
    ) -> None:
        directory.mkdir(exist_ok=True)
        self.pair = new_pair()
        content = CATALOGUE.read_bytes() if catalogue is None else catalogue
        self.catalogue = Folder(directory / "catalogue", {"catalogue.yaml": content})
        self.tls = Folder(directory / "tls", tls_files(self.pair))
        self._log_file = directory / "log"
        self._connections: list[http.client.HTTPSConnection] = []
        command = [sys.executable, "-m", "sidecar", "webhook", "--image", IMAGE]
        command += ["--host", "127.0.0.1", "--port", "0", "--http-port", "0"]
        command += ["--catalogue", str(self.catalogue.path / "catalogue.yaml")]
        command += ["--tls", str(self.tls.path), *arguments]
        environment = dict(os.environ)
        if kubeconfig is not None:
            environment["KUBECONFIG"] = str(kubeconfig)
        with self._log_file.open("wb") as log:
            self.process = subprocess.Popen(
                command, stderr=log, stdin=subprocess.DEVNULL, env=environment
            )

    def __enter__(self) -> Self:
        try:
            self.wait_for_log(r"msg=serving port=\d+ http_port=\d+\n")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGINT, after which nobody is waited for; the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=300)

    def log(self) -> str:
        return self._log_file.read_text()

    def wait_for_log(self, pattern: str) -> None:
        wait_until(
            lambda: re.search(pattern, self.log()),
            lambda: f"{pattern} in\n{self.log()}",
            _START_S,
            running=lambda: self.process.poll() is None,
        )

    @property
    def port(self) -> int:
        return int(re.findall(r"serving port=(\d+)", self.log())[0])

    @property
    def http_port(self) -> int:
        return int(re.findall(r"http_port=(\d+)", self.log())[0])

    def page(self, path: str) -> str:
        url = f"http://127.0.0.1:{self.http_port}{path}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())

    def connect(self, pair: IssuedCertificate | None = None) -> http.client.HTTPSConnection:
        """A connection that trusts one CA and verifies the Service's name."""
        context = ssl.create_default_context(cadata=(pair or self.pair).authority.decode())
        connection = _Named("127.0.0.1", self.port, timeout=30, context=context)
        self._connections.append(connection)
        return connection


class _Named(http.client.HTTPSConnection):
    """Connects by address, verifies by name."""

    _context: ssl.SSLContext

    def connect(self) -> None:
        http.client.HTTPConnection.connect(self)
        self.sock = self._context.wrap_socket(self.sock, server_hostname=NAME)


def post(
    connection: http.client.HTTPConnection, body: bytes, path: str = "/mutate"
) -> tuple[int, bytes]:
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read()


def review(connection: http.client.HTTPConnection, body: bytes) -> dict[str, Any]:
    """The response to a review."""
    status, data = post(connection, body)
    assert status == 200, data
    document = json.loads(data)
    assert (document["kind"], document["apiVersion"]) == (
        "AdmissionReview",
        "admission.k8s.io/v1",
    )
    response: dict[str, Any] = document["response"]
    return response
