"""The admission server: `/mutate` over TLS, health and metrics on another port. Decides nothing.

It has one event loop: an answer takes a millisecond to compute, and more replicas are more
processes.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from sidecar import logs
from sidecar.control.injection.sidecar_container import Injection
from sidecar.control.webhook.admission import answer
from sidecar.control.webhook.reloading import ReloadingCatalogue, ReloadingCertificate
from sidecar.errors import PortInUse, ReviewInvalid
from sidecar.metrics import WebhookMetrics
from sidecar.units import MIB

log = logging.getLogger("sidecar.webhook")

_LARGEST_REVIEW_BYTES = 8 * MIB
"""More than an API server sends: its limit for an object is 3 MiB, and an update holds two."""
_REFRESH_S = 1.0
_SHUTDOWN_S = 10.0
"""How long requests in flight may take after SIGTERM."""


@dataclass(frozen=True, slots=True)
class Listen:
    """Address and ports of the server. Port 0 picks a free one, which the log names."""

    host: str
    port: int
    http_port: int


def serve(catalogue: Path, tls: Path, injection: Injection, listen: Listen) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        catalogue: the catalogue's file; read again when it changes.
        tls: a folder with ``tls.crt`` and ``tls.key``; read again when they change.

    Raises:
        ConfigError: the catalogue or the certificate cannot be used.
        PortInUse: a port is taken.
    """
    logs.set_up("webhook")
    server = _Server(ReloadingCatalogue(catalogue), ReloadingCertificate(tls), injection)
    asyncio.run(server.run(listen))


class _Server:
    def __init__(
        self, catalogue: ReloadingCatalogue, certificate: ReloadingCertificate, injection: Injection
    ) -> None:
        self._catalogue = catalogue
        self._certificate = certificate
        self._injection = injection
        self._metrics = WebhookMetrics()

    async def run(self, listen: Listen) -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        admission = web.Application(client_max_size=_LARGEST_REVIEW_BYTES)
        admission.router.add_post("/mutate", self._mutate)
        pages = web.Application()
        pages.router.add_get("/metrics", self._page)
        for probe in ("/startupz", "/livez"):
            pages.router.add_get(probe, self._alive)
        runners = [
            web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
            for app in (admission, pages)
        ]
        try:
            for runner in runners:
                await runner.setup()
            context = self._certificate.context
            port = await _start(
                web.TCPSite(runners[0], listen.host, listen.port, ssl_context=context)
            )
            http_port = await _start(web.TCPSite(runners[1], listen.host, listen.http_port))
            logs.event(log, "serving", port=port, http_port=http_port)
            refreshing = asyncio.create_task(self._refresh())
            await stop.wait()
            refreshing.cancel()
            logs.event(log, "asked to stop")
        finally:
            for runner in runners:
                await runner.cleanup()

    async def _refresh(self) -> None:
        """Look at the files also when no request comes, so that log and metrics are up to date."""
        while True:
            self._certificate.refresh()
            self._catalogue.refresh()
            self._metrics.files(self._catalogue.valid, self._certificate.expires_s)
            await asyncio.sleep(_REFRESH_S)

    async def _mutate(self, request: web.Request) -> web.Response:
        body = await request.read()  # HTTP 413 beyond the limit
        started_s = time.perf_counter()
        self._catalogue.refresh()
        try:
            found = answer(body, self._catalogue.current, self._injection)
        except ReviewInvalid as error:
            self._metrics.request("malformed", time.perf_counter() - started_s, error.code)
            return web.Response(status=400, text=error.line() + "\n")
        self._metrics.request(found.outcome, time.perf_counter() - started_s, found.code)
        return web.json_response(found.review)

    async def _page(self, request: web.Request) -> web.Response:  # noqa: ARG002
        content_type, page = self._metrics.page()
        return web.Response(body=page, headers={"Content-Type": content_type})

    async def _alive(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return web.json_response({"alive": True})


async def _start(site: web.TCPSite) -> int:
    """Begin to listen; the port. Raises PortInUse."""
    try:
        await site.start()
    except OSError as error:
        raise PortInUse(
            f"cannot listen on {site.name}: {error.strerror}", "free the port"
        ) from None
    return site.port
