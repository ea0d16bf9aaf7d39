"""Ephemeral storage, with a kubelet's arithmetic (pkg/kubelet/eviction/helpers.go).

A pod is evicted when what it has on disk exceeds the sum of its containers' limits, where one of
them has a limit; or when an emptyDir exceeds its own. Its emptyDirs count, and so the spool does.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from sidecar.contract.spec import PersistenceSpec
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from sidecar.units import GIB, MIB
from tests.control.injection.golden import NAMES, expected, given
from tests.control.injection.test_golden import documents

STATE_MIB = 256
"""The state directory without the spools: journals and metrics."""
LOG_MIB = 64
"""A kubelet keeps five files of 10 MiB, and looks at them now and then."""
SHARED_MIB = 16
"""An emptyDir with a status file."""


def pods(name: str) -> list[dict[str, Any]]:
    """Each pod of an injected manifest that has the sidecar."""
    found, pending = [], list(documents(expected(name).read_text()))
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if "mount-sidecar.io/spec" in item.get("metadata", {}).get("annotations", {}):
                found.append(item)
            pending += item.values()
    return found


def spec_of(pod: dict[str, Any]) -> PersistenceSpec:
    return PersistenceSpec.from_json(pod["metadata"]["annotations"]["mount-sidecar.io/spec"])


def limits(pod: dict[str, Any]) -> dict[str, int]:
    """The limits on disk, in bytes, by the container's name."""
    containers = [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    return {
        container["name"]: parse_quantity(limit).rounded_up
        for container in containers
        if (limit := container.get("resources", {}).get("limits", {}).get("ephemeral-storage"))
    }


def spool_bytes_of(pod: dict[str, Any]) -> int:
    """The spool of each writable bucket; all have the same size here."""
    [size_bytes] = {v.options.spool_bytes for v in spec_of(pod).buckets if not v.read_only}
    return size_bytes


def state_limit(pod: dict[str, Any]) -> int:
    """The size limit of the emptyDir with the spool, in bytes."""
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    return int(volumes["mount-sidecar-state"]["emptyDir"]["sizeLimit"])


@pytest.mark.parametrize("name", NAMES)
def test_no_limit_is_reached(name: str) -> None:
    for pod in pods(name):
        spec = spec_of(pod)
        writable = [volume for volume in spec.buckets if not volume.read_only]
        state_bytes = STATE_MIB * MIB + sum(volume.options.spool_bytes for volume in writable)
        caches = [volume for volume in spec.buckets if volume.options.cache == "disk"]
        state_bytes += sum(volume.options.cache_bytes or 0 for volume in caches)
        assert state_bytes <= state_limit(pod)
        found = limits(pod)
        assert ("mount-sidecar" in found) == bool(found.keys() - {"mount-sidecar"})
        if found:
            assert state_bytes + (LOG_MIB + SHARED_MIB) * MIB <= found["mount-sidecar"]


def test_main_has_a_limit() -> None:
    """200 MiB for its own files, and as much for the spool as in a pod without limits."""
    [pod] = pods("disk-limit-of-main")
    assert spool_bytes_of(pod) == 10 * GIB
    sidecar_bytes = 10 * GIB + (STATE_MIB + LOG_MIB + SHARED_MIB) * MIB
    assert limits(pod) == {"main": 200 * MIB, "mount-sidecar": sidecar_bytes}


def test_only_the_annotation_is_there() -> None:
    """It bounds the spool. A limit of the sidecar's would be the whole pod's."""
    [pod] = pods("disk-limit-annotated")
    assert limits(pod) == {}
    assert spool_bytes_of(pod) == (1024 - STATE_MIB - LOG_MIB - SHARED_MIB) * MIB


def test_both_are_there() -> None:
    [pod] = pods("disk-limit-of-both")
    assert limits(pod) == {"prepare": 2 * GIB, "mount-sidecar": GIB}
    assert spool_bytes_of(pod) == (1024 - STATE_MIB - LOG_MIB - SHARED_MIB) * MIB


def test_a_request_is_never_larger_than_the_limit() -> None:
    """The pod only reads, so it needs no spool."""
    pod = yaml.safe_load(given("disk-limit-of-both"))
    annotations = pod["metadata"]["annotations"]
    annotations["mount-sidecar.io/data"] = '["images"]'
    del annotations["mount-sidecar.io/outputs"]
    annotations["mount-sidecar.io/ephemeral-storage-limit"] = "100Mi"
    text = "data: {images: {store: s3, bucket: 's3://images', anonymous: true, readOnly: true}}"
    made = inject(pod, parse_catalogue(text, "catalogue"), Injection())
    resources = made["spec"]["initContainers"][0]["resources"]
    for bound in ("requests", "limits"):
        assert resources[bound]["ephemeral-storage"] == "100Mi"


@pytest.mark.parametrize("name", ["disk-limit-of-main", "disk-limit-of-both"])
def test_a_node_needs_no_room_for_a_full_spool(name: str) -> None:
    """Without a request the API server would take the limit for one."""
    [pod] = pods(name)
    [sidecar] = [c for c in pod["spec"]["initContainers"] if c["name"] == "mount-sidecar"]
    request = parse_quantity(sidecar["resources"]["requests"]["ephemeral-storage"])
    assert request.rounded_up == STATE_MIB * MIB
