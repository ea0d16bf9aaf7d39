"""The messages that children may send to process 1, by their events. Standard library only.

A child that has gone wrong may send anything. It must not take process 1, which has the mounts,
along. So process 1 takes only messages of these shapes.
"""

from __future__ import annotations

from typing import Any, Final

_COUNT: Final = range(2**63)
_PID: Final = range(2, 2**22 + 1)
"""PIDs go up to PID_MAX_LIMIT (linux/threads.h)."""
_ERROR: Final = {"code": str, "what": str, "hint": str}
_UNSAVED: Final = {
    "unsaved": [{"key": str, "size_bytes": _COUNT, "code": str, "why": str}],
    "unsaved_count": _COUNT,
}
_TEXTS: Final = dict.fromkeys(("operation", "code", "name", "message", "first", "last"), str)

SHAPES: Final[dict[str, dict[str, Any]]] = {
    "beat": {"hangs": str},
    # A check.
    "passed": {},
    "failed": _ERROR,  # a worker sends it, too
    # The fork server.
    "forked": {"number": _COUNT, "pid": _PID},
    "lacking": {"errno": _COUNT},
    # A worker.
    "probing": {},
    "waiting": _ERROR,
    "checked": {"conditions": [str]},
    "serving": {"can_resume": bool},
    "failing": {"failing": [{**_TEXTS, "count": _COUNT}]},
    "draining": {**_UNSAVED, "size_bytes": _COUNT},
    "drained": _UNSAVED,
    # The others.
    "ping": {"number": _COUNT},
    "lost": {"containers": {str: [str]}},
    "deleted": {"grace_s": _COUNT, "own_grace_s": _COUNT, "containers": [str]},
    "experiment ended": {},
    "warming": {"volume": str, "state": str, "names": _COUNT, "bytes": _COUNT},
}


def is_known(message: dict[str, Any]) -> bool:
    """Whether a message has the shape of its event."""
    event = message.get("event")
    shape = SHAPES.get(event) if isinstance(event, str) else None
    return shape is not None and fits(message, {"event": str, **shape})


def fits(value: object, shape: Any) -> bool:
    """Whether a value of JSON has a shape.

    Args:
        shape: a type; a range of whole numbers; a list with the shape of its items; a dict with the
            shape of each field, or from ``str`` to the shape of all.
    """
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(item, shape[0]) for item in value)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        if str in shape:
            return all(fits(item, shape[str]) for item in value.values())
        return value.keys() == shape.keys() and all(fits(value[key], shape[key]) for key in shape)
    if isinstance(shape, range):
        return type(value) is int and value in shape
    return isinstance(value, shape)
