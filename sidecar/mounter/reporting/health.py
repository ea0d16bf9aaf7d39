"""The process that answers HTTP on one port, if there is one: metrics, status, and probes.

A liveness probe that is a command looks at a file instead (:mod:`.probe_files`).

This process is separate so that the supervisor needs no library, and no scrape waits for a mount.
It listens on process 1's socket: while it is being replaced, clients wait and are not refused. Live
means that the supervisor answers a ping. A store that is down, or a worker that is restarted, must
not make the kubelet kill the sidecar, and with it the mounts. Probes are answered whatever clients
do: they have a thread of their own, and :mod:`sidecar.http.server` bounds everything else.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import Final

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from sidecar import logs
from sidecar.contract.spec import PersistenceSpec, volume_label
from sidecar.http.message import HttpRequest, HttpResponse
from sidecar.http.server import HttpServer, Route, ServerLimits
from sidecar.metrics import read_volume_totals, scrape_registry
from sidecar.mounter.reporting.probe_files import keep_alive_file
from sidecar.mounter.system.channel import Channel
from sidecar.mounter.system.directories import pinned
from sidecar.mounter.system.status import (
    METRICS_DIRECTORY,
    dump_status,
    read_status,
    read_status_text,
)
from sidecar.units import MIB

_PING_TIMEOUT_S = 2.0
_LIMITS: Final = ServerLimits(
    connections=128, idle_s=10, kept_s=10, request_s=10, body_bytes=0, held_bytes=4 * MIB
)
_PROBES, _PAGES = "probes", "pages"
"""The threads. A page of metrics is computed from files, and a probe must not wait for it."""
_MOST_WAITING: Final = 32
"""Requests that may wait for one page. All of them together leave room for probes."""


class Supervisor:
    """Process 1: whether its loop still runs."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._changed = threading.Condition()
        self._last_ping = 0
        self._pinged_s = 0.0
        self._last_pong = 0

    def listen(self) -> None:
        """Take the supervisor's answers. If the supervisor is gone, this process ends, too."""
        while (received := self._channel.receive()) is not None:
            with self._changed:
                self._last_pong = max(self._last_pong, int(received[0].get("pong", 0)))
                self._changed.notify_all()
        os._exit(0)

    def is_alive(self) -> bool:
        """Whether the supervisor answers in time.

        One question is asked at a time: while its answer is missing, all callers wait for it. So
        clients cannot flood it, and a probe of a supervisor that hangs is answered at once.
        """
        with self._changed:
            if self._last_pong == self._last_ping:
                self._last_ping += 1
                self._pinged_s = time.monotonic()
                self._channel.send({"event": "ping", "number": self._last_ping})
            left_s = max(0.0, self._pinged_s + _PING_TIMEOUT_S - time.monotonic())
            return self._changed.wait_for(lambda: self._last_pong == self._last_ping, left_s)


class _Pages:
    """The pages."""

    def __init__(self, state: Path, supervisor: Supervisor) -> None:
        self._state = state
        self._metrics_directory = pinned(state / METRICS_DIRECTORY)
        self._registry = scrape_registry(self._metrics_directory, lambda: read_status(state))
        self._supervisor = supervisor

    def routes(self) -> dict[str, Route]:
        return {
            "/metrics": Route("GET", self._metrics, _PAGES, _MOST_WAITING),
            "/statusz": Route("GET", self._status, _PAGES, _MOST_WAITING),
            "/startupz": Route("GET", self._startup, _PROBES),
            "/livez": Route("GET", self._live, _PROBES),
            "/livez/experiment": Route("GET", self._experiment_live, _PROBES),
        }

    def _metrics(self, _: HttpRequest) -> HttpResponse:
        return HttpResponse(HTTPStatus.OK, generate_latest(self._registry), CONTENT_TYPE_LATEST)

    def _status(self, _: HttpRequest) -> HttpResponse:
        """The status document; for volumes in use, also what only metrics know."""
        status = read_status(self._state)
        if status["ready"]:
            found = read_volume_totals(self._metrics_directory).parts_in_flight
            for volume in status["volumes"]:
                label = volume_label(volume["kind"], volume["name"])
                volume["in_flight_limit_parts"] = found.get(label, {})
        return _json(HTTPStatus.OK, dump_status(status))

    def _startup(self, _: HttpRequest) -> HttpResponse:
        text = read_status_text(self._state)
        ready = bool(json.loads(text)["ready"])
        return _json(HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE, text)

    def _live(self, _: HttpRequest) -> HttpResponse:
        alive = self._supervisor.is_alive()
        return _json(
            HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE,
            json.dumps({"alive": alive}) + "\n",
        )

    def _experiment_live(self, _: HttpRequest) -> HttpResponse:
        """For probes of the experiment's containers: 503 if a restart of theirs mends a mount."""
        volumes = read_status(self._state)["volumes"]
        lost = {
            volume_label(volume["kind"], volume["name"]): volume["lost_in"]
            for volume in volumes
            if volume["lost_in"]
        }
        return _json(
            HTTPStatus.SERVICE_UNAVAILABLE if lost else HTTPStatus.OK,
            json.dumps({"alive": not lost, "lost": lost}) + "\n",
        )


def _json(status: HTTPStatus, text: str) -> HttpResponse:
    return HttpResponse(status, text.encode(), "application/json")


def main(channel: Channel, spec: PersistenceSpec) -> int:
    """Serve until the channel ends. The listening socket comes first; without it, no port."""
    logs.set_up("health")
    received = channel.receive()
    if received is None:
        return 0
    _, listener = received
    state = Path(spec.roots.state)
    supervisor = Supervisor(channel)
    threading.Thread(target=supervisor.listen, name="supervisor", daemon=True).start()
    if not listener:
        keep_alive_file(state, supervisor.is_alive)
    beat = threading.Thread(
        target=keep_alive_file, args=(state, supervisor.is_alive), name="alive file", daemon=True
    )
    beat.start()
    pages = _Pages(state, supervisor)
    server = HttpServer(socket.socket(fileno=listener[0]), pages.routes(), _LIMITS)
    server.serve()
    return 0
