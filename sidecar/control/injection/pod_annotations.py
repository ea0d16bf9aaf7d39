"""What a pod asks for: its ``mount-sidecar.io/`` annotations.

======================== =====================================================
``data``                 JSON list of data volumes; absent: every one
``outputs``              name of the outputs volume; absent: the first writable
``run``                  path of the run below the outputs volume
``paths``                ``local`` or ``urls``: what the variables hold for buckets
``cpu-request``, ...     resources of the sidecar, as Kubernetes quantities
======================== =====================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from sidecar.control.catalogue.selection import Selection, parse_selection
from sidecar.control.catalogue.yaml_document import Value
from sidecar.control.injection.object_fields import Json, mapping, text
from sidecar.control.injection.quantity import parse_quantity
from sidecar.errors import AnnotationInvalid
from sidecar.spec_document import nearest

PREFIX: Final = "mount-sidecar.io/"
INJECT_LABEL: Final = PREFIX + "inject"
STATUS_ANNOTATION: Final = PREFIX + "status"
SPEC_ANNOTATION: Final = PREFIX + "spec"
"""Carries the spec to the sidecar, through the downward API (decision 16)."""

RESOURCES: Final = (
    "cpu-request",
    "cpu-limit",
    "memory-request",
    "memory-limit",
    "ephemeral-storage-limit",
)
_KNOWN = ("data", "outputs", "run", "paths", *RESOURCES)
_OWN = (STATUS_ANNOTATION, SPEC_ANNOTATION)


@dataclass(frozen=True, slots=True)
class PodRequest:
    """The annotations, read.

    Attributes:
        resources: by their name in :data:`RESOURCES`, as written.
    """

    selection: Selection = field(default_factory=Selection)
    run: str = ""
    paths: Literal["local", "urls"] = "local"
    resources: Mapping[str, str] = field(default_factory=dict)


def parse_pod_request(metadata: Json, where: str) -> PodRequest:
    """Read the annotations of a pod's or a template's ``metadata``.

    Raises:
        AnnotationInvalid: an unknown one, or a value that it cannot have.
        SelectionInvalid: ``data`` or ``outputs`` has a wrong shape.
        ManifestInvalid: the annotations are no mapping of strings.
    """
    given = {
        key.removeprefix(PREFIX): text(annotations, key, f"{where}.annotations")
        for annotations in (mapping(metadata, "annotations", where),)
        for key in annotations
        if key.startswith(PREFIX) and key not in _OWN
    }
    for key in given:
        if key not in _KNOWN:
            raise AnnotationInvalid(
                f"unknown annotation `{PREFIX}{key}`{nearest(key, list(_KNOWN))}",
                f"known are: {', '.join(_KNOWN)}",
            )
    section: dict[str, Value] = {
        "data": _names(given["data"]) if "data" in given else None,
        "outputs": given.get("outputs"),
    }
    selection = parse_selection(section, "the pod's annotations")
    paths = given.get("paths", "local")
    if paths not in ("local", "urls"):
        raise AnnotationInvalid(f"annotation `{PREFIX}paths`: must be `local` or `urls`")
    return PodRequest(
        selection=selection,
        run=given.get("run", ""),
        paths="urls" if paths == "urls" else "local",
        resources={key: _quantity(key, given[key]) for key in RESOURCES if key in given},
    )


def _names(value: str) -> list[Value]:
    """The JSON list of volume names that ``data`` holds."""
    try:
        names = json.loads(value)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AnnotationInvalid(
            f"annotation `{PREFIX}data`: must be a JSON list of names",
            f"""write {PREFIX}data: '["NAME"]'""",
        )
    return names


def _quantity(key: str, value: str) -> str:
    if parse_quantity(value) is None:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}{key}`: is no Kubernetes quantity", "such as `500m` or `2Gi`"
        )
    return value
