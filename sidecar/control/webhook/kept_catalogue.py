"""Keeps the last valid catalogue in a ConfigMap, for a replica that starts with an invalid file.

The ConfigMap is mounted, so a replica needs no right to read it, only the right to patch it.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.errors import ClusterError

log = logging.getLogger("sidecar.webhook")

KEY: Final = "catalogue.yaml"
_FIRST_DELAY_S: Final = 5.0
_LONGEST_DELAY_S: Final = 300.0


@dataclass(slots=True)
class KeptCatalogue:
    """Writes the ConfigMap. Used by one thread.

    Attributes:
        file: where the ConfigMap is mounted; it may not be there.
        namespace, name: of the ConfigMap. Without a name nothing is kept.
    """

    file: Path
    namespace: str
    name: str | None
    _kept: str | None = None
    _next_s: float = 0.0
    _backoff: Backoff = field(default_factory=lambda: Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S))

    def keep(self, text: str) -> None:
        """Keep a valid catalogue, unless it is the kept one already.

        A failure is logged, once, and a later call tries again.
        """
        if self.name is None or text == self._kept or time.monotonic() < self._next_s:
            return
        if text != self._mounted():
            try:
                self._patch(text)
            except ClusterError as error:
                if self._next_s == 0:
                    why = error.line()
                    logs.event(log, "the catalogue cannot be kept", logging.WARNING, why=why)
                self._next_s = time.monotonic() + self._backoff.next_s()
                return
            logs.event(log, "catalogue kept", configmap=self.name)
        self._kept = text
        self._next_s = 0.0
        self._backoff.reset()

    def _mounted(self) -> str | None:
        try:
            return self.file.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError):
            return None

    def _patch(self, text: str) -> None:
        """Raises ClusterError."""
        # Imported here: most replicas write nothing, and need no client of the API.
        from kubernetes import client

        from sidecar.cluster.api import connect, request

        request(
            f"keep the catalogue in the ConfigMap `{self.name}` in `{self.namespace}`",
            client.CoreV1Api(connect()).patch_namespaced_config_map,
            self.name,
            self.namespace,
            {"data": {KEY: text}},
        )
