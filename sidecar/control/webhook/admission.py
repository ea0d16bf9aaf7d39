"""AdmissionReview in, AdmissionReview out (admission.k8s.io/v1). Pure.

An answer has no side effects, so dry runs need no special case, and replicas need not agree.
"""

from __future__ import annotations

import base64
import json
import math
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn

from sidecar.control.catalogue.catalogue import Catalogue
from sidecar.control.injection.inject import pod_patch
from sidecar.control.injection.object_fields import JsonObject, get_mapping
from sidecar.control.injection.pod_annotations import INJECT_LABEL
from sidecar.control.injection.sidecar_container import Injection
from sidecar.errors import ConfigError, ReviewInvalid
from sidecar.units import MIB

API_VERSION: Final = "admission.k8s.io/v1"
UNPROCESSABLE: Final = 422
REVIEW_BYTES: Final = 4 * MIB
"""More than an API server sends: it takes objects of 3 MiB, and a new pod has no old object."""
_MESSAGE_CHARS: Final = 4000
_VALUES: Final = 60_000
"""The most values in one review. A pod has hundreds; the spec of 600 volumes, the largest that fits
an annotation, has 30,000. An empty list takes 3 bytes in a review and 70 in memory."""

Outcome = Literal["injected", "unchanged", "refused"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one request.

    Attributes:
        review: the AdmissionReview to send.
        code: stable code of the refusal; None if there is none.
    """

    review: JsonObject
    outcome: Outcome
    code: str | None = None


def answer(body: bytes, catalogue: Catalogue, injection: Injection) -> Verdict:
    """Answer one request.

    A new pod with the label ``mount-sidecar.io/inject: "true"`` gets the sidecar, or is refused
    with a message for its author. Everything else is allowed unchanged: other kinds, updates,
    pods without the label, pods that have the sidecar.

    Args:
        body: an AdmissionReview as JSON.

    Raises:
        ReviewInvalid: ``body`` is no review, or not of version 1.
    """
    request = _request(body)
    uid = request["uid"]
    pod = request.get("object")
    if not isinstance(pod, dict) or not _wants_sidecar(request, pod):
        return Verdict(_review({"uid": uid, "allowed": True}), "unchanged")
    try:
        patch = pod_patch(pod, catalogue, injection)
    except ConfigError as error:
        status = {
            "status": "Failure",
            "reason": "Invalid",
            "code": UNPROCESSABLE,
            "message": _shortened(f"{error.code} {error.name}: {error.message}"),
        }
        refusal = {"uid": uid, "allowed": False, "status": status}
        return Verdict(_review(refusal), "refused", error.code)
    if not patch:
        return Verdict(_review({"uid": uid, "allowed": True}), "unchanged")
    encoded = base64.b64encode(json.dumps(patch).encode()).decode()
    response = {"uid": uid, "allowed": True, "patchType": "JSONPatch", "patch": encoded}
    return Verdict(_review(response), "injected")


def _request(body: bytes) -> JsonObject:
    if sum(map(body.count, (b"[", b"{", b","))) > _VALUES:
        raise ReviewInvalid(f"the body has more than {_VALUES} values")
    try:
        review: Any = json.loads(body.decode(), parse_constant=_no_number, parse_float=_finite)
        if b"\\ud" in body.lower():  # maybe half a surrogate pair
            json.dumps(review, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ReviewInvalid("the body is not JSON") from None
    if not isinstance(review, dict) or review.get("kind") != "AdmissionReview":
        raise ReviewInvalid("the body is no AdmissionReview")
    if review.get("apiVersion") != API_VERSION:
        raise ReviewInvalid(f"the AdmissionReview is not of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, dict) or not isinstance(request.get("uid"), str):
        raise ReviewInvalid("the AdmissionReview has no request with a `uid`")
    return request


def _finite(text: str) -> float:
    """A number that can be written as JSON again. Raises ValueError if it is too large."""
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    """Refuse ``NaN`` and ``Infinity``, which Python takes, but which are no JSON."""
    raise ValueError(text)


def _shortened(message: str) -> str:
    """A message cut to a bounded length: it may quote what a pod's author wrote."""
    return message if len(message) <= _MESSAGE_CHARS else f"{message[:_MESSAGE_CHARS]} ..."


def _wants_sidecar(request: JsonObject, pod: JsonObject) -> bool:
    kind = request.get("kind")
    if request.get("operation") != "CREATE" or kind != {
        "group": "",
        "version": "v1",
        "kind": "Pod",
    }:
        return False
    if request.get("subResource"):
        return False
    try:
        labels = get_mapping(get_mapping(pod, "metadata", "pod"), "labels", "pod.metadata")
    except ConfigError:
        return False  # no API server sends a pod of this shape
    return bool(labels.get(INJECT_LABEL) == "true")


def _review(response: JsonObject) -> JsonObject:
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}
