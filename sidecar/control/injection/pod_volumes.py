"""The pod volumes that the sidecar needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sidecar.contract.pod import RESERVED_PREFIX, SHARED_SUFFIX, STATE_SUFFIX
from sidecar.contract.spec import (
    ClaimSource,
    HostPathSource,
    Kind,
    PersistenceSpec,
    StoreSource,
    Volume,
)
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)
from sidecar.control.injection.pod_annotations import SPEC_ANNOTATION
from sidecar.errors import PodConflict

_SHARED_SIZE: Final = "16Mi"
"""Limit of the shared emptyDir, which holds empty directories and a status file. The content of
mounts does not count: the kubelet does not descend into other devices (pkg/volume/util/fs)."""
_SECRET_MODE: Final = 0o400
_WHERE: Final = "pod.spec"


@dataclass(frozen=True, slots=True)
class VolumeNames:
    """Names of pod volumes, by what they hold.

    Attributes:
        fuse: ``/dev/fuse``; None if no bucket is mounted.
        secrets: by secret.
        node_cache: the node's cache; None if no volume uses it.
        memory_cache: caches in memory; None if there are none.
        authorities: ConfigMaps with CA bundles, by name.
        directories: hostPaths and claims, by the volume's kind and name in the spec.
    """

    shared: str
    state: str
    spec: str
    fuse: str | None
    node_cache: str | None
    memory_cache: str | None
    secrets: Mapping[str, str]
    authorities: Mapping[str, str]
    directories: Mapping[tuple[Kind, str], str]

    def of_directory(self, volume: Volume) -> str:
        """The pod volume of a hostPath or a claim."""
        return self.directories[volume.kind, volume.name]


def add_volumes(
    pod_spec: JsonObject, spec: PersistenceSpec, *, state_bytes: int, memory_cache_bytes: int
) -> VolumeNames:
    """Add volumes to ``pod_spec``, in place.

    Args:
        state_bytes: size limit of the state directory.
        memory_cache_bytes: size limit of all caches in memory; 0: there are none.

    Raises:
        PodConflict: the pod mounts a claim read-only that must be writable.
        ManifestInvalid: the pod's own volumes have a wrong shape.
    """
    volumes = _Volumes(get_mappings(pod_spec, "volumes", _WHERE))
    field = {"fieldPath": f"metadata.annotations['{SPEC_ANNOTATION}']"}
    names = VolumeNames(
        shared=volumes.add(SHARED_SUFFIX, {"emptyDir": {"sizeLimit": _SHARED_SIZE}}),
        state=volumes.add(STATE_SUFFIX, {"emptyDir": {"sizeLimit": str(state_bytes)}}),
        spec=volumes.add(
            "spec", {"downwardAPI": {"items": [{"path": "spec.json", "fieldRef": field}]}}
        ),
        fuse=(
            volumes.add("fuse", {"hostPath": {"path": "/dev/fuse", "type": "CharDevice"}})
            if spec.buckets
            else None
        ),
        node_cache=(
            volumes.add("node-cache", {"hostPath": {"path": path, "type": "DirectoryOrCreate"}})
            if (path := node_cache_path(spec)) is not None
            else None
        ),
        memory_cache=(
            volumes.add(
                "memory-cache",
                {"emptyDir": {"medium": "Memory", "sizeLimit": str(memory_cache_bytes)}},
            )
            if memory_cache_bytes
            else None
        ),
        secrets={
            secret: volumes.add(f"secret-{index}", _secret_source(secret, keys))
            for index, (secret, keys) in enumerate(_secret_keys(spec).items())
        },
        authorities={
            name: volumes.add(f"authorities-{index}", _config_map_source(name, keys))
            for index, (name, keys) in enumerate(_authority_keys(spec).items())
        },
        directories={
            (volume.kind, volume.name): volumes.add_directory(volume, index)
            for index, volume in enumerate(spec.volumes)
            if not volume.is_bucket
        },
    )
    pod_spec["volumes"] = volumes.all
    return names


def node_cache_path(spec: PersistenceSpec) -> str | None:
    """The node's folder with the cache of the pod's volumes; None if no volume uses one."""
    uses = any(volume.options.cache == "node" for volume in spec.buckets)
    return spec.node_cache.host_path if uses else None


def volume_mount(name: str, path: str, read_only: bool) -> JsonObject:
    """An ordinary ``volumeMounts`` entry."""
    return {"name": name, "mountPath": path, **({"readOnly": True} if read_only else {})}


class _Volumes:
    """The pod's own volumes, and then the added ones."""

    def __init__(self, own: list[JsonObject]) -> None:
        self.all = list(own)
        self._of_claims: dict[str, JsonObject] = {}
        for volume in own:
            claim = get_mapping(volume, "persistentVolumeClaim", f"{_WHERE}.volumes")
            name = get_string(claim, "claimName", f"{_WHERE}.volumes.persistentVolumeClaim")
            self._of_claims.setdefault(name, volume)

    def add(self, suffix: str, source: JsonObject) -> str:
        """Add a volume under a name that no volume of the pod has; the name."""
        name = f"{RESERVED_PREFIX}{suffix}"
        self.all.append({"name": name, **source})
        return name

    def add_directory(self, volume: Volume, index: int) -> str:
        """The pod volume of a hostPath or a claim, added if the pod lacks it; its name."""
        match volume.source:
            case HostPathSource(host_path=path):
                # A type that demands an existing directory would keep the kubelet from starting
                # anything, without a code. The sidecar checks the directory (decision 47).
                kind = {} if volume.must_hold_data else {"type": "DirectoryOrCreate"}
                return self.add(f"host-path-{index}", {"hostPath": {"path": path, **kind}})
            case ClaimSource(claim=claim):
                if claim not in self._of_claims:
                    source = {"persistentVolumeClaim": {"claimName": claim}}
                    self.add(f"claim-{index}", source)
                    self._of_claims[claim] = self.all[-1]
                return self._name_of_claim(volume, claim)
            case StoreSource():
                raise AssertionError(f"{volume.name} is a bucket")

    def _name_of_claim(self, volume: Volume, claim: str) -> str:
        """The volume that has the claim. A pod with two volumes of one claim may never start."""
        there = self._of_claims[claim]
        if there["persistentVolumeClaim"].get("readOnly") and not volume.read_only:
            raise PodConflict(
                f"the pod has the claim `{claim}` read-only as its volume `{there['name']}`, "
                f"and {volume.kind} volume `{volume.name}` is writable",
                "remove `readOnly` there, or add it to the catalogue",
            )
        return str(there["name"])


_Keys = dict[str, dict[str, None]]
"""Keys by object, each once."""


def _secret_keys(spec: PersistenceSpec) -> _Keys:
    """The keys that are needed of each secret, in the volumes' order."""
    keys: _Keys = {}
    for source in _stores(spec):
        if source.secret is not None and source.secret_key is not None:
            keys.setdefault(source.secret, {})[source.secret_key] = None
        if (bundle := source.ca_bundle) is not None and bundle.kind == "secret":
            keys.setdefault(bundle.name, {})[bundle.key] = None
    return keys


def _authority_keys(spec: PersistenceSpec) -> _Keys:
    """The keys that are needed of each ConfigMap, in the volumes' order."""
    keys: _Keys = {}
    for source in _stores(spec):
        if (bundle := source.ca_bundle) is not None and bundle.kind == "configMap":
            keys.setdefault(bundle.name, {})[bundle.key] = None
    return keys


def _stores(spec: PersistenceSpec) -> list[StoreSource]:
    return [source for volume in spec.volumes for source in volume.stores]


def _secret_source(secret: str, keys: Iterable[str]) -> JsonObject:
    return {
        "secret": {
            "secretName": secret,
            "items": [{"key": key, "path": key} for key in keys],
            "defaultMode": _SECRET_MODE,
            # So that the sidecar can start, and say what is missing.
            "optional": True,
        }
    }


def _config_map_source(name: str, keys: Iterable[str]) -> JsonObject:
    # Optional: the sidecar says which file is missing; a kubelet would only wait.
    items = [{"key": key, "path": key} for key in keys]
    return {"configMap": {"name": name, "items": items, "optional": True}}
