"""Calls the Kubernetes API through its client: the one seam where its errors become ours.

Both halves use it: the reporter in a pod, and the certificate job. The client makes no retries
of its own, and every call has a time limit.
"""

from __future__ import annotations

import json
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import urllib3
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from sidecar.errors import (
    ApiConflict,
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRefused,
    ApiUnavailable,
    ClusterError,
    NotInCluster,
)

TIMEOUT_S: Final = (2.0, 5.0)
"""Time limits of connecting, and of each read."""
_TOO_MANY: Final = 429
_MESSAGE_LENGTH: Final = 300
_BY_STATUS: Final[dict[int, type[ClusterError]]] = {
    401: ApiForbidden,
    403: ApiForbidden,
    404: ApiNotFound,
    409: ApiConflict,
    410: ApiGone,
}


def connect() -> Any:
    """A client for the API, by ``KUBECONFIG``, ``~/.kube/config`` or the pod's service account.

    Raises:
        NotInCluster: none of them can be used.
    """
    settings: Any = client.Configuration()
    # The path is passed, because the client reads the variable only when it is imported.
    file = Path(os.environ.get("KUBECONFIG") or "~/.kube/config").expanduser()
    try:
        if file.exists():
            config.load_kube_config(str(file), client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    except (config.ConfigException, OSError) as error:
        raise NotInCluster(
            f"no way to the Kubernetes API: {error}", "a service account's token, or a kubeconfig"
        ) from None
    settings.retries = False
    return client.ApiClient(settings)


def request(what: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a method of the client; the API's answer as plain JSON values.

    The client's own models are not used: they refuse answers of a newer API.

    Args:
        what: see :func:`translated`.

    Raises:
        ClusterError: the call failed.
    """
    with translated(what):
        answer = function(*arguments, **options, _preload_content=False, _request_timeout=TIMEOUT_S)
        return json.loads(answer.data)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the client into a ClusterError.

    Args:
        what: the attempt, as the end of "cannot …", such as ``create events in `team```.
    """
    try:
        yield
    except ApiException as error:
        raise _error(error, what) from None
    except (urllib3.exceptions.HTTPError, ssl.SSLError, ConnectionError, TimeoutError) as error:
        reason = str(error).partition("Caused by ")[2] or type(error).__name__
        raise ApiUnavailable(f"cannot {what}: no connection ({reason})") from None


def _error(error: ApiException, what: str) -> ClusterError:
    status = int(error.status or 0)
    kind = _BY_STATUS.get(status)
    if kind is None:
        unavailable = status in (0, _TOO_MANY) or status >= 500
        kind = ApiUnavailable if unavailable else ApiRefused
    reason = str(error.reason or "no connection").splitlines()[0]
    if said := _message(error):  # the account and the verb, or what a policy has against it
        reason += f" ({said})"
    hint = "its Role must allow it" if kind is ApiForbidden else ""
    translated_ = kind(f"cannot {what}: {status} {reason}", hint)
    if isinstance(translated_, ApiUnavailable):
        translated_.retry_after_s = _retry_after_s(error)
    return translated_


def _message(error: ApiException) -> str:
    """The first line of the API's Status; empty if the answer is none."""
    try:
        lines = str(json.loads(error.body or "{}")["message"]).splitlines()
    except (ValueError, KeyError, TypeError):  # a proxy's page
        return ""
    return lines[0][:_MESSAGE_LENGTH] if lines else ""


def _retry_after_s(error: ApiException) -> float:
    headers = error.headers or {}
    given = headers.get("Retry-After", "0")
    return float(given) if given.isdigit() else 0.0
