"""The process that answers HTTP: /metrics, /startupz, /livez, /statusz on one port.

It is separate so that the supervisor needs no library, and no scrape waits for a mount. Live
means that the supervisor answers a ping. A store that is down, or a worker that is restarted,
must not make the kubelet kill the sidecar, and with it the mounts. Whatever clients do, probes are
answered: they have a thread of their own, and :mod:`sidecar.http_server` bounds the rest.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from sidecar import logs
from sidecar.errors import PortInUse
from sidecar.http_message import Request, Response
from sidecar.http_server import HttpServer, Limits, Route, listen
from sidecar.metrics import scrape_registry
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.directories import pinned
from sidecar.mounter.system.status import METRICS_DIRECTORY, STATUS_FILE
from sidecar.stop_signals import STOP_SIGNALS
from sidecar.units import MIB

_PING_TIMEOUT_S = 2.0
_LIMITS: Final = Limits(connections=128, idle_s=10, request_s=10, body_bytes=0, held_bytes=4 * MIB)
_PROBES, _PAGES = "probes", "pages"
"""The threads. A page of metrics is computed from files, and a probe must not wait for it."""


class Liveness:
    """Asks the supervisor whether its loop still runs."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._answered = threading.Condition()
        self._last_ping = 0
        self._pinged_s = 0.0
        self._last_pong = 0

    def listen(self) -> None:
        """Take the supervisor's answers. When it is gone, this process ends too."""
        while (received := self._channel.receive()) is not None:
            with self._answered:
                self._last_pong = max(self._last_pong, int(received[0].get("pong", 0)))
                self._answered.notify_all()
        os._exit(0)

    def is_alive(self) -> bool:
        """Whether the supervisor answers in time.

        It is asked once: while an answer is missing, whoever comes next waits for the same one.
        So clients cannot flood it, and a probe of a supervisor that hangs is answered at once.
        """
        with self._answered:
            if self._last_pong == self._last_ping:
                self._last_ping += 1
                self._pinged_s = time.monotonic()
                self._channel.send({"event": "ping", "number": self._last_ping})
            left_s = max(0.0, self._pinged_s + _PING_TIMEOUT_S - time.monotonic())
            return self._answered.wait_for(lambda: self._last_pong == self._last_ping, left_s)


class _Pages:
    """What is served."""

    def __init__(self, status_file: Path, registry: CollectorRegistry, liveness: Liveness) -> None:
        self._status_file = status_file
        self._registry = registry
        self._liveness = liveness

    def routes(self) -> dict[str, Route]:
        return {
            "/metrics": Route("GET", self._metrics, _PAGES),
            "/statusz": Route("GET", self._status, _PAGES),
            "/startupz": Route("GET", self._startup, _PROBES),
            "/livez": Route("GET", self._live, _PROBES),
        }

    def _metrics(self, _: Request) -> Response:
        return Response(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def _status(self, _: Request) -> Response:
        return _json(HTTPStatus.OK, self._status_file.read_text())

    def _startup(self, _: Request) -> Response:
        text = self._status_file.read_text()
        ready = bool(json.loads(text)["ready"])
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text)

    def _live(self, _: Request) -> Response:
        alive = self._liveness.is_alive()
        return _json(
            HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE,
            json.dumps({"alive": alive}) + "\n",
        )


def _json(status: HTTPStatus, text: str) -> Response:
    return Response(status, text.encode(), "application/json")


def main(arguments: list[str]) -> int:
    """``python -m sidecar.mounter.reporting.health CHANNEL STATE HOST PORT``."""
    descriptor, state, host, port = arguments
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logs.set_up("health")
    channel = Channel.inherited(int(descriptor))
    status_file = Path(state) / STATUS_FILE
    liveness = Liveness(channel)
    registry = scrape_registry(
        pinned(Path(state) / METRICS_DIRECTORY), lambda: dict(json.loads(status_file.read_text()))
    )
    try:
        listener = listen(
            host, int(port), "free the port, or set another in the spec (`http.host`, `http.port`)"
        )
    except PortInUse as error:
        channel.send({"event": "failed", **error.to_message()})
        return error.exit_status
    server = HttpServer(listener, _Pages(status_file, registry, liveness).routes(), _LIMITS)
    channel.send({"event": "listening", "port": server.port})
    threading.Thread(target=liveness.listen, name="liveness", daemon=True).start()
    server.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
