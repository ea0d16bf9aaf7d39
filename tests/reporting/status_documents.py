"""Parts of status documents, as the sidecar writes them."""

from __future__ import annotations

from typing import Any


def volume(**changes: Any) -> dict[str, Any]:
    """A bucket that is served, with these fields."""
    return {
        "kind": "outputs",
        "name": "models",
        "path": "/models",
        "state": "serving",
        "error": None,
        "failing": [],
        "healed": {"resend": 0, "remount": 0},
        "unsaved": [],
        "unsaved_count": 0,
        "remounted_at": None,
        "lost_in": [],
        "warmed": None,
        **changes,
    }


def status(phase: str = "ready", *volumes: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """What process 1 says in a phase, of these volumes or of one that is well."""
    every = list(volumes or (volume(),))
    return {
        "phase": phase,
        "ready": phase == "ready",
        "error": None,
        "restarted": False,
        "waiting": "",
        "time_is_up": False,
        "volumes": every,
        **changes,
    }
