"""The admission server: `/mutate` over TLS, health and metrics on another port.

One thread computes the answers, and another one those to large reviews. Most answers take a
millisecond, and more replicas are more processes. :mod:`sidecar.http.server` bounds clients.
"""

from __future__ import annotations

import json
import logging
import signal
import ssl
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from sidecar import logs
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.admission import REVIEW_BYTES, answer
from sidecar.control.webhook.kept_catalogue import KeptCatalogue
from sidecar.control.webhook.reloading import ReloadingCatalogue, ReloadingCertificate
from sidecar.errors import ReviewInvalid
from sidecar.http.listening import listen
from sidecar.http.message import HttpRequest, HttpResponse
from sidecar.http.server import HttpServer, Route, ServerLimits
from sidecar.metrics import WebhookMetrics
from sidecar.units import MIB

log = logging.getLogger("sidecar.webhook")

_REFRESH_S = 1.0
_HINT: Final = "free the port"
_DRAIN_S: Final = 10.0
"""How long requests are taken after SIGTERM: until no node's routes lead to this replica."""
_ADMISSION: Final = ServerLimits(
    connections=200,
    idle_s=5,
    kept_s=120,  # the API server keeps one for 90 s (IdleConnTimeout of Go's http.Transport)
    request_s=10,
    body_bytes=REVIEW_BYTES,
    held_bytes=32 * MIB,
)
_PAGES: Final = ServerLimits(
    connections=50, idle_s=10, kept_s=10, request_s=10, body_bytes=0, held_bytes=MIB
)


@dataclass(frozen=True, slots=True)
class Listen:
    """Address and ports of the server. Port 0 picks a free one, which is logged."""

    host: str
    port: int
    http_port: int


def serve(
    catalogue: Path, kept: KeptCatalogue, tls: Path, injection: Injection, where: Listen
) -> None:
    """Serve until SIGINT, or until ten seconds after SIGTERM. Requests in progress are answered.

    Args:
        catalogue: the catalogue's file; read again when it changes.
        kept: where the last valid one is kept.
        tls: a folder with ``tls.crt`` and ``tls.key``; read again when they change.

    Raises:
        ConfigError: neither the catalogue nor a kept one can be used, or the certificate cannot.
        PortInUse: a port is taken.
    """
    logs.set_up("webhook")
    webhook = _Webhook(
        ReloadingCatalogue(catalogue, kept.file), kept, ReloadingCertificate(tls), injection
    )
    admission = HttpServer(
        listen(where.host, where.port, _HINT),
        {"/mutate": Route("POST", webhook.mutate)},
        _ADMISSION,
        tls=webhook.tls_context,
    )
    pages = HttpServer(
        listen(where.host, where.http_port, _HINT),
        {
            "/metrics": Route("GET", webhook.metrics, most=_PAGES.connections // 2),
            "/startupz": Route("GET", webhook.ready, "probes"),
            "/livez": Route("GET", webhook.alive, "probes"),
        },
        _PAGES,
    )

    signal.signal(signal.SIGTERM, lambda *_: admission.stop(_DRAIN_S))
    signal.signal(signal.SIGINT, lambda *_: admission.stop())
    for name, run in (("pages", pages.serve), ("refresh", webhook.follow_files)):
        threading.Thread(target=run, name=name, daemon=True).start()
    logs.event(log, "serving", port=admission.port, http_port=pages.port)
    admission.serve()
    logs.event(log, "stopped")


class _Webhook:
    def __init__(
        self,
        catalogue: ReloadingCatalogue,
        kept: KeptCatalogue,
        certificate: ReloadingCertificate,
        injection: Injection,
    ) -> None:
        self._catalogue = catalogue
        self._kept = kept
        self._certificate = certificate
        self._injection = injection
        self._metrics = WebhookMetrics()

    def tls_context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._certificate.context

    def follow_files(self) -> None:
        """Check the files also when no request comes, so that log and metrics are up to date."""
        while True:
            self._certificate.refresh()
            self._catalogue.refresh()
            self._metrics.files(self._catalogue.problem is None, self._certificate.expires_s)
            self._kept.keep(self._catalogue.text)
            time.sleep(_REFRESH_S)

    def mutate(self, request: HttpRequest) -> HttpResponse:
        """An AdmissionReview's answer; 400 for anything else."""
        started_s = time.perf_counter()
        self._catalogue.refresh()
        try:
            found = answer(request.body, self._catalogue.current, self._injection)
        except ReviewInvalid as error:
            self._metrics.request("malformed", time.perf_counter() - started_s, error.code)
            return HttpResponse(HTTPStatus.BAD_REQUEST, f"{error.line()}\n".encode())
        self._metrics.request(found.outcome, time.perf_counter() - started_s, found.code)
        return _json(found.review)

    def metrics(self, _: HttpRequest) -> HttpResponse:
        """For Prometheus."""
        content_type, page = self._metrics.page()
        return HttpResponse(HTTPStatus.OK, page, content_type)

    def ready(self, _: HttpRequest) -> HttpResponse:
        """For the kubelet. Ready also with an earlier catalogue, else no pod would get the sidecar.

        The document says which catalogue is in use.
        """
        return _json({"ready": True, "catalogueError": self._catalogue.problem})

    def alive(self, _: HttpRequest) -> HttpResponse:
        """For the kubelet."""
        return _json({"alive": True})


def _json(document: object) -> HttpResponse:
    return HttpResponse(HTTPStatus.OK, json.dumps(document).encode(), "application/json")
