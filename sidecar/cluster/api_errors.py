"""The Kubernetes API's answers as errors of ours.

The certificate job asks through the API's own client (:mod:`sidecar.cluster.api`), the sidecar
through its own HTTP (:mod:`sidecar.mounter.reporting.pod_api`).
"""

from __future__ import annotations

import json
from typing import Final

from sidecar.errors import (
    ApiConflict,
    ApiForbidden,
    ApiGone,
    ApiNotFound,
    ApiRefused,
    ApiUnavailable,
    ClusterError,
)

_TOO_MANY: Final = 429
_MESSAGE_LENGTH: Final = 300
_BY_STATUS: Final[dict[int, type[ClusterError]]] = {
    401: ApiForbidden,
    403: ApiForbidden,
    404: ApiNotFound,
    409: ApiConflict,
    410: ApiGone,
}


def answer_error(
    what: str, status: int, reason: str, body: str | bytes | None, retry_after: str
) -> ClusterError:
    """The error for an answer that is no success.

    Args:
        what: the attempt, as the end of "cannot …", such as ``create events in `team```.
        status: of HTTP; 0 if there was none.
        reason: the status in words.
        body: the API's Status, or what a proxy wrote.
        retry_after: the header ``Retry-After``, or empty.
    """
    kind = _BY_STATUS.get(status)
    if kind is None:
        unavailable = status in (0, _TOO_MANY) or status >= 500
        kind = ApiUnavailable if unavailable else ApiRefused
    if said := _message(body):  # the account and the verb, or what a policy has against it
        reason += f" ({said})"
    hint = "its Role must allow it" if kind is ApiForbidden else ""
    error = kind(f"cannot {what}: {status} {reason}", hint)
    if isinstance(error, ApiUnavailable):
        plain = retry_after.isascii() and retry_after.isdigit()
        error.retry_after_s = float(retry_after) if plain else 0.0
    return error


def no_answer(what: str, reason: str) -> ApiUnavailable:
    """The error of an attempt without an answer; ``what`` as in :func:`answer_error`."""
    return ApiUnavailable(f"cannot {what}: no connection ({reason})")


def _message(body: str | bytes | None) -> str:
    """The first line of the API's Status; empty if the answer is none."""
    try:
        lines = str(json.loads(body or "{}")["message"]).splitlines()
    except (ValueError, KeyError, TypeError, RecursionError):  # a proxy's page
        return ""
    return lines[0][:_MESSAGE_LENGTH] if lines else ""
