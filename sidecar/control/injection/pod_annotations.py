"""What a pod asks for: its ``mount-sidecar.io/`` annotations, parsed and not yet resolved.

======================== =====================================================
``data``                 JSON list of data volumes; absent: all
``outputs``              name of the outputs volume; absent: the first writable
``run``                  path of the run below the outputs volume
``options``              JSON object: options by volume, `*` for all
``paths``                ``local`` or ``urls``: what the variables hold for buckets
``port``                 of metrics and probes: a number, or ``none``
``cpu-request``, …       the sidecar's resources, as Kubernetes quantities
======================== =====================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from sidecar.contract.spec_document import nearest
from sidecar.control.catalogue.quantity import Quantity, parse_quantity
from sidecar.control.catalogue.resolve import Paths
from sidecar.control.catalogue.run_options import NO_OPTIONS, RunOptions, parse_run_options
from sidecar.control.catalogue.selection import Selection, parse_selection
from sidecar.control.catalogue.yaml_document import YamlValue
from sidecar.control.injection.object_fields import JsonObject, get_mapping, get_string
from sidecar.errors import AnnotationInvalid

PREFIX: Final = "mount-sidecar.io/"
INJECT_LABEL: Final = PREFIX + "inject"
STATUS_ANNOTATION: Final = PREFIX + "status"
SPEC_ANNOTATION: Final = PREFIX + "spec"
"""Carries the spec to the sidecar, which reads it through the downward API (decision 16)."""

RESOURCES: Final = (
    "cpu-request",
    "cpu-limit",
    "memory-request",
    "memory-limit",
    "ephemeral-storage-limit",
)
_KNOWN = ("data", "outputs", "run", "options", "paths", "port", *RESOURCES)
_PORTS: Final = range(1, 65536)
_OWN = (STATUS_ANNOTATION, SPEC_ANNOTATION)


@dataclass(frozen=True, slots=True)
class PodRequest:
    """What the annotations ask for.

    Attributes:
        run: path of the run below the outputs volume; empty for the volume itself.
        options: of the volumes and the pod.
        port: of metrics and probes; None: the injector chooses.
        resources: the sidecar's annotated resources, by their name in :data:`RESOURCES`.
    """

    selection: Selection = field(default_factory=Selection)
    run: str = ""
    options: RunOptions = NO_OPTIONS
    paths: Paths = "local"
    port: int | Literal["none"] | None = None
    resources: Mapping[str, Quantity] = field(default_factory=dict)


def parse_pod_request(metadata: JsonObject, where: str) -> PodRequest:
    """Parse the annotations in the ``metadata`` of a pod or pod template.

    Args:
        where: path to ``metadata``, for errors.

    Raises:
        AnnotationInvalid: an annotation is unknown, or has a wrong value.
        OptionInvalid, UnknownKey: ``options`` has an unknown option, or a wrong value.
        SelectionInvalid: ``data`` or ``outputs`` has a wrong shape.
        ManifestInvalid: the annotations are no mapping of strings.
    """
    given = {
        key.removeprefix(PREFIX): get_string(annotations, key, f"{where}.annotations")
        for annotations in (get_mapping(metadata, "annotations", where),)
        for key in annotations
        if key.startswith(PREFIX) and key not in _OWN
    }
    for key in given:
        if key not in _KNOWN:
            raise AnnotationInvalid(
                f"unknown annotation `{PREFIX}{key}`{nearest(key, list(_KNOWN))}",
                f"known are: {', '.join(_KNOWN)}",
            )
    section: dict[str, YamlValue] = {
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
        options=(
            parse_run_options(given["options"], f"annotation `{PREFIX}options`", AnnotationInvalid)
            if "options" in given
            else NO_OPTIONS
        ),
        paths="urls" if paths == "urls" else "local",
        port=_port(given["port"]) if "port" in given else None,
        resources={key: _quantity(key, given[key]) for key in RESOURCES if key in given},
    )


def _port(value: str) -> int | Literal["none"]:
    if value == "none":
        return "none"
    if not (value.isascii() and value.isdecimal() and int(value) in _PORTS):
        raise AnnotationInvalid(
            f"annotation `{PREFIX}port`: must be a port from 1 to 65535, or `none`"
        )
    return int(value)


def _names(value: str) -> list[YamlValue]:
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


def _quantity(key: str, value: str) -> Quantity:
    try:
        return parse_quantity(value)
    except ValueError:
        raise AnnotationInvalid(
            f"annotation `{PREFIX}{key}`: is no Kubernetes quantity", "such as `500m` or `2Gi`"
        ) from None
