"""What the start waits for: shown soon, and named if it takes too long.

Standard library only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Final

from sidecar import logs
from sidecar.errors import EndpointUnreachable, ReadyTimeout, SidecarError
from sidecar.mounter.supervisor.retries import Retries
from sidecar.mounter.supervisor.volume import SupervisedVolume

log = logging.getLogger("sidecar.supervisor")

_SAID_AFTER_S: Final = 5.0


class StartWait:
    """What one start waits for.

    Args:
        volumes: all of them.
        started_s: when the start began (monotonic).

    Attributes:
        text: what the start waits for, and since when; empty while it has not waited long.
    """

    def __init__(
        self, volumes: Sequence[SupervisedVolume], retries: Retries, started_s: float
    ) -> None:
        self._volumes = volumes
        self._retries = retries
        self._say_s = started_s + _SAID_AFTER_S
        since = time.gmtime(time.time() + started_s - time.monotonic())
        self._since = time.strftime("%Y-%m-%dT%H:%M:%SZ", since)
        self.text = ""

    def look(self, checked: Iterable[SupervisedVolume]) -> bool:
        """Update the text; whether it changed. ``checked``: volumes whose check is running."""
        if time.monotonic() < self._say_s:
            return False
        error = self.error(_SAID_AFTER_S, checked)
        text = f"waiting since {self._since}: {error.code} {error.name}: {error.message}"
        is_new, self.text = text != self.text, text
        if is_new:
            logs.event(log, "waiting", logging.WARNING, since=self._since, why=error.message)
        return is_new

    def error(self, seconds: float, checked: Iterable[SupervisedVolume]) -> SidecarError:
        """The error for a start that took ``seconds``: which volume it waited for, and why."""
        late = [v for v in self._volumes if v.state not in ("checked", "serving")]
        late.extend(v for v in checked if v not in late)
        for volume in late:
            if volume.error is not None:
                return volume.named(volume.error)
            if volume.state == "probing":  # its first request is still in flight
                silent = EndpointUnreachable(
                    f"the store did not answer within {seconds:g} s",
                    "check the endpoint's address and that the pod's network lets it through",
                )
                return volume.named(silent)
        names = ", ".join(volume.volume.label for volume in late) or "the sidecar"
        failing = self._retries.failing
        hint = "a hanging network path, perhaps"
        if failing or self._retries.shortages:
            hint = "a limit of processes, memory, descriptors or disk that others use up?"
        return ReadyTimeout(
            f"not ready after {seconds:g} s: {names}{': ' if failing else ''}{failing}", hint
        )
