"""Calls the Kubernetes API through its client: the one seam where its errors become ours.

For the certificate job. The client makes no retries of its own, and every call has a time limit.
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

from sidecar.cluster.api_errors import answer_error, no_answer
from sidecar.errors import ClusterError, NotInCluster

TIMEOUT_S: Final = (2.0, 5.0)
"""Time limits of connecting, and of each read."""


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
        raise no_answer(what, reason) from None


def _error(error: ApiException, what: str) -> ClusterError:
    reason = str(error.reason or "no connection").splitlines()[0]
    retry_after = (error.headers or {}).get("Retry-After", "")
    return answer_error(what, int(error.status or 0), reason, error.body, retry_after)
