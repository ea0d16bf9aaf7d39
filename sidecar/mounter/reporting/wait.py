"""`sidecar wait`: returns when the sidecar of this pod is ready.

It asks over HTTP: the experiment could write the ready file, and an earlier start may have left
one. Standard library only, since it is run often.
"""

from __future__ import annotations

import http.client
import json
import time
from typing import Any, Final

from sidecar.contract.spec import volume_label
from sidecar.errors import ReadyTimeout

_POLL_S: Final = 0.2
_REQUEST_TIMEOUT_S: Final = 5.0


def wait_until_ready(port: int, timeout_s: float) -> None:
    """Return when every selected volume is usable.

    Raises:
        ReadyTimeout: not within ``timeout_s``. The message says which volumes are late.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        status = _status(port)
        if status is not None and status["ready"]:
            return
        if time.monotonic() >= deadline_s:
            break
        time.sleep(_POLL_S)
    raise ReadyTimeout(f"not ready after {timeout_s:g} s: {_describe(status, port)}")


def _status(port: int) -> dict[str, Any] | None:
    """The status document, or None if nobody answers yet."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", "/statusz")  # /startupz may wait itself
        document: dict[str, Any] = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return None
    else:
        return document
    finally:
        connection.close()


def _describe(status: dict[str, Any] | None, port: int) -> str:
    if status is None:
        return f"no sidecar answers on port {port}"
    late = [volume for volume in status["volumes"] if volume["state"] != "serving"]
    return ", ".join(map(_volume, late)) or f"the sidecar is {status['phase']}"


def _volume(volume: dict[str, Any]) -> str:
    error = volume["error"]
    why = f"{error['code']} {error['message']}" if error else volume["state"]
    return f"{volume_label(volume['kind'], volume['name'])} ({why})"
