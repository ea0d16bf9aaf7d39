"""Asks the Kubernetes API with the pod's service account, through the sidecar's own HTTP.

The API's own client takes 55 MB and more than a second of CPU time to say a few words
(docs/decisions/0043-one-process-forks-the-others.md). Nothing is retried here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode

from sidecar.cluster.api_errors import answer_error, no_answer
from sidecar.contract.pod import SERVICE_ACCOUNT, SERVICE_ACCOUNT_VARIABLE
from sidecar.errors import ClusterError, NotInCluster
from sidecar.mounter.store.http.client import HttpClient
from sidecar.mounter.store.http.connection import Response
from sidecar.mounter.store.http.fields import BrokenResponse, Headers
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.signed_request import SignedRequest
from sidecar.mounter.store.http.timeouts import AdaptiveTimeout
from sidecar.units import KIB, MIB

TIMEOUT_S: Final = 5.0
"""How long the server may be silent; each of its addresses has as long."""
_WATCH_S: Final = 300
_LONGEST_ANSWER_BYTES: Final = 4 * MIB
"""More than etcd takes as one object."""
_READ_BYTES: Final = 64 * KIB
_SUCCESS: Final = (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.ACCEPTED)
_ONLY_METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
"""The accepted answer to a write: only metadata, since nobody reads it."""

Document = dict[str, Any]
T = TypeVar("T")


class PodApi:
    """The API as the pod's service account may use it. Safe to use from any thread.

    Each method makes one attempt, and raises ClusterError: NotInCluster if the pod has no token
    or no address of the API, ApiUnavailable if a later attempt may work.

    Args:
        environment: has the address, and :data:`SERVICE_ACCOUNT_VARIABLE`.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._environment = environment
        self._folder = Path(environment.get(SERVICE_ACCOUNT_VARIABLE, SERVICE_ACCOUNT))
        self._client: HttpClient[str] | None = None
        self._authority = (0, 0)

    def create_event(self, namespace: str, event: Document) -> None:
        """Create an event, as the API takes it."""
        self._write(
            f"create events in `{namespace}`",
            "POST",
            f"/api/v1/namespaces/{namespace}/events",
            "application/json",
            event,
        )

    def patch_pod_status(self, namespace: str, name: str, patch: Document) -> None:
        """Change the status of a pod by a strategic merge patch: conditions merge by their type."""
        self._write(
            f"patch the status of pods in `{namespace}`",
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/{name}/status",
            "application/strategic-merge-patch+json",
            patch,
        )

    def see_pod(self, namespace: str, name: str, uid: str) -> Document:
        """The pod, as the answer to a change of nothing: that needs no right to read it."""
        answer = self._write(
            f"patch the status of pods in `{namespace}`",
            "PATCH",
            f"/api/v1/namespaces/{namespace}/pods/{name}/status",
            "application/strategic-merge-patch+json",
            {"metadata": {"uid": uid}},
            accept="application/json",
        )
        found: Document = json.loads(answer)
        return found

    def wait_for_state(self, namespace: str, name: str, wanted: Callable[[Document], bool]) -> bool:
        """Whether a pod is as ``wanted``, now or after a change.

        False when the server ends the watch, after some minutes: ask again.

        Raises:
            ApiGone: the changes since the first look are no longer kept.
        """
        what = f"watch pods in `{namespace}`"
        path = f"/api/v1/namespaces/{namespace}/pods"
        only = {"fieldSelector": f"metadata.name={name}"}
        pods = self._read(what, path, only, _parsed_whole, silent_s=TIMEOUT_S)
        if any(wanted(pod) for pod in pods["items"]):
            return True

        def has_come(response: Response) -> bool:
            return any(wanted(pod) for pod in _changes(response, what))

        since = {"resourceVersion": pods["metadata"]["resourceVersion"]}
        query = {**only, **since, "watch": "true", "timeoutSeconds": str(_WATCH_S)}
        return self._read(what, path, query, has_come, silent_s=_WATCH_S + TIMEOUT_S)

    def close(self) -> None:
        """Close idle connections."""
        if self._client is not None:
            self._client.close()

    def _write(
        self,
        what: str,
        method: str,
        target: str,
        kind: str,
        document: Document,
        accept: str = _ONLY_METADATA,
    ) -> bytes:
        def sign() -> SignedRequest:
            headers = {"accept": accept, "content-type": kind, **self._login()}
            return SignedRequest(method, target, headers)

        response = self._open().send(
            what,
            sign,
            [json.dumps(document).encode()],
            accepted=_SUCCESS,
            timeout=AdaptiveTimeout(TIMEOUT_S, TIMEOUT_S),
        )
        return response.content

    def _read(
        self,
        what: str,
        path: str,
        query: Mapping[str, str],
        read: Callable[[Response], T],
        silent_s: float,
    ) -> T:
        def sign() -> SignedRequest:
            headers = {"accept": "application/json", **self._login()}
            return SignedRequest("GET", f"{path}?{urlencode(query)}", headers)

        timeout = AdaptiveTimeout(silent_s, silent_s)
        return self._open().receive(what, sign, read, accepted=_SUCCESS, timeout=timeout)

    def _login(self) -> dict[str, str]:
        """The token's header. It is read each time: a kubelet replaces it before it expires."""
        try:
            token = (self._folder / "token").read_text().strip()
        except (OSError, ValueError):
            raise _outside(f"`{self._folder}/token` cannot be read") from None
        return {"authorization": f"Bearer {token}"}

    def _open(self) -> HttpClient[str]:
        """The client; a new one if the API server's authority was replaced."""
        file = self._folder / "ca.crt"
        try:
            host = self._environment["KUBERNETES_SERVICE_HOST"]
            port = int(self._environment["KUBERNETES_SERVICE_PORT"])
            status = file.stat()
            authority = status.st_ino, status.st_mtime_ns
            if self._client is None or authority != self._authority:
                endpoint = Endpoint(True, host, port, authorities=str(file), direct=True)
                self.close()
                self._client, self._authority = HttpClient(endpoint, _Translator()), authority
        except KeyError as error:
            raise _outside(f"{error.args[0]} is not set") from None
        except ValueError:
            raise _outside("KUBERNETES_SERVICE_PORT is no number") from None
        except OSError:
            raise _outside(f"`{file}` cannot be read") from None
        return self._client


class _Translator:
    """Translates this API's errors; a call is the attempt in words."""

    def refused(self, call: str, response: Response, body: bytes) -> ClusterError:
        try:
            reason = HTTPStatus(response.status).phrase
        except ValueError:
            reason = "unknown"
        retry_after = response.fields.get("retry-after", "")
        return answer_error(call, response.status, reason, body, retry_after)

    def unanswered(self, call: str, error: Exception) -> ClusterError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return no_answer(call, reason)

    def redirect(self, fields: Headers) -> None:
        """Do nothing: the API server redirects nobody."""


def _outside(why: str) -> NotInCluster:
    return NotInCluster(f"no way to the Kubernetes API: {why}", "does the pod have a token?")


def _parsed_whole(response: Response) -> Document:
    return _parsed(response.read_all(_LONGEST_ANSWER_BYTES))


def _changes(response: Response, what: str) -> Iterator[Document]:
    """The pods of a watch, one JSON document a line. Raises ClusterError if a line is an error."""
    left = b""
    buffer = memoryview(bytearray(_READ_BYTES))
    while count := response.readinto(buffer):
        left += bytes(buffer[:count])
        *lines, left = left.split(b"\n")
        if len(left) > _LONGEST_ANSWER_BYTES:
            raise BrokenResponse("a line does not end")
        for line in lines:
            change = _parsed(line)
            pod = change["object"]
            if change["type"] == "ERROR":
                raise answer_error(what, pod["code"], pod["reason"], line, "")
            yield pod


def _parsed(content: bytes) -> Document:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise BrokenResponse("not JSON") from None
    if not isinstance(document, dict):
        raise BrokenResponse("not a JSON object")
    return document
