"""The process that answers HTTP: /metrics, /startupz, /livez, /statusz on one port.

It is separate so that the supervisor needs no library, and no scrape waits for a mount. Live
means that the supervisor answers a ping. A store that is down, or a worker that is restarted,
must not make the kubelet kill the sidecar, and with it the mounts.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sidecar import logs
from sidecar.errors import PortInUse
from sidecar.metrics import scrape_registry
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.status import STATUS_FILE

_PING_TIMEOUT_S = 2.0
_REQUEST_TIMEOUT_S = 10.0


class Liveness:
    """Asks the supervisor whether its loop still runs."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._answered = threading.Condition()
        self._last_ping = 0
        self._last_pong = 0

    def listen(self) -> None:
        """Take the supervisor's answers. When it is gone, this process ends too."""
        while (received := self._channel.receive()) is not None:
            with self._answered:
                self._last_pong = max(self._last_pong, int(received[0].get("pong", 0)))
                self._answered.notify_all()
        os._exit(0)

    def is_alive(self) -> bool:
        """Whether the supervisor answered in time."""
        with self._answered:
            self._last_ping += 1
            number = self._last_ping
        self._channel.send({"event": "ping", "number": number})
        with self._answered:
            return self._answered.wait_for(lambda: self._last_pong >= number, _PING_TIMEOUT_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        address: tuple[str, int],
        status_file: Path,
        registry: CollectorRegistry,
        liveness: Liveness,
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.status_file = status_file
        self.registry = registry
        self.liveness = liveness

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A scraper that hung up is not worth a traceback."""
        logging.getLogger("sidecar.health").debug("a request from %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = _REQUEST_TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "mount-sidecar"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            self._answer(HTTPStatus.OK, generate_latest(self.server.registry), CONTENT_TYPE_LATEST)
        elif path == "/startupz":
            text = self.server.status_file.read_text()
            ready = bool(json.loads(text)["ready"])
            self._answer_json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text)
        elif path == "/statusz":
            self._answer_json(HTTPStatus.OK, self.server.status_file.read_text())
        elif path == "/livez":
            alive = self.server.liveness.is_alive()
            self._answer_json(
                HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE,
                json.dumps({"alive": alive}) + "\n",
            )
        else:
            self._answer_json(HTTPStatus.NOT_FOUND, '{"error": "no such page"}\n')

    do_HEAD = do_GET

    def _answer_json(self, status: HTTPStatus, text: str) -> None:
        self._answer(status, text.encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base's name
        """Nothing: a probe every few seconds is no state change."""


def main(arguments: list[str]) -> int:
    """``python -m sidecar.mounter.reporting.health CHANNEL STATE HOST PORT``."""
    descriptor, state, host, port = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logs.set_up("health")
    channel = Channel.inherited(int(descriptor))
    status_file = Path(state) / STATUS_FILE
    liveness = Liveness(channel)
    registry = scrape_registry(
        Path(state) / "metrics", lambda: dict(json.loads(status_file.read_text()))
    )
    try:
        server = _Server((host, int(port)), status_file, registry, liveness)
    except OSError as error:
        busy = PortInUse(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)}",
            "free the port, or set another in the spec (`http.port`)",
        )
        channel.send({"event": "failed", **busy.to_message()})
        return busy.exit_status
    channel.send({"event": "listening", "port": server.server_address[1]})
    threading.Thread(target=liveness.listen, name="liveness", daemon=True).start()
    server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
