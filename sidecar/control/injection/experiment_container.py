"""Mounts and variables for each of the pod's own containers."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from sidecar.contract.paths import contains, normalised
from sidecar.contract.spec import HostPathSource, PersistenceSpec, Volume
from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)
from sidecar.control.injection.pod_volumes import VolumeNames, volume_mount
from sidecar.errors import PodConflict

_SPEC: Final = "pod.spec"


class _Mount(NamedTuple):
    """A ``volumeMounts`` entry, and the volume that it shows (None for the shared directory)."""

    entry: JsonObject
    volume: Volume | None


def equip_containers(
    containers: Iterable[JsonObject],
    spec: PersistenceSpec,
    pod_volumes: list[JsonObject],
    names: VolumeNames,
) -> None:
    """Add mounts and variables to containers, in place.

    Args:
        pod_volumes: the pod's ``volumes``, added ones included.

    Raises:
        PodConflict: a mount of a container's own is in the way.
        ManifestInvalid: a container has a wrong shape.
    """
    by_name = {get_string(v, "name", f"{_SPEC}.volumes"): v for v in pod_volumes}
    mounts = _mounts(spec, names)
    # A kubelet replaces $(NAME), and turns $$ into $.
    variables = {key: value.replace("$", "$$") for key, value in spec.environment.items()}
    for container in containers:
        where = f"container `{get_string(container, 'name', f'{_SPEC}.containers')}`"
        own = _OwnMounts(get_mappings(container, "volumeMounts", where), by_name, where)
        added = [m.entry for m in mounts if not own.show(m, names)]
        container["volumeMounts"] = [*own.all, *added]
        _set_environment(container, variables, where)


def _mounts(spec: PersistenceSpec, names: VolumeNames) -> list[_Mount]:
    shared = {
        "name": names.shared,
        "mountPath": spec.roots.shared,
        # The directory itself is read-only, so that nothing is written beside the mounts and
        # lost. A writable mount in it stays writable.
        "readOnly": True,
        "mountPropagation": "HostToContainer",
    }
    mounts = [_Mount(shared, None)]
    for volume in spec.volumes:
        if not volume.is_bucket:
            name = names.of_directory(volume)
            mounts.append(_Mount(volume_mount(name, volume.path, volume.read_only), volume))
        elif volume.mountpoint is not None and volume.path != volume.mountpoint:
            sub_path = volume.mountpoint.removeprefix(f"{spec.roots.shared}/")
            entry = volume_mount(names.shared, volume.path, volume.read_only)
            mounts.append(_Mount({**entry, "subPath": sub_path}, volume))
    return mounts


class _OwnMounts:
    """The mounts that a container has by itself, by path."""

    def __init__(
        self, mounts: list[JsonObject], volumes: Mapping[str, JsonObject], where: str
    ) -> None:
        self.all = mounts
        self._volumes = volumes
        self._where = where
        self._at: dict[str, list[JsonObject]] = {}
        for mount in mounts:
            path = normalised(get_string(mount, "mountPath", f"{where}.volumeMounts"))
            self._at.setdefault(path, []).append(mount)
        self._paths = sorted(self._at)

    def show(self, mount: _Mount, names: VolumeNames) -> bool:
        """Whether the container already has the mount of a hostPath or claim, at its path.

        Raises:
            PodConflict: something else is mounted there. For a bucket, also below its path: the
                container runtime would make a directory in the bucket.
        """
        path, volume = mount.entry["mountPath"], mount.volume
        in_the_way = path if path in self._at else None
        if volume is not None and not volume.is_bucket:
            there = self._at.get(path, [])
            if there and all(self._is(one, volume, names) for one in there):
                return True
        elif in_the_way is None:
            below = bisect.bisect_left(self._paths, f"{path}/")
            in_the_way = next(
                (p for p in self._paths[below : below + 1] if contains(path, p)), None
            )
        if in_the_way is not None:
            what = f"{volume.kind} volume `{volume.name}`" if volume else "the sidecar"
            name = self._at[in_the_way][0].get("name")
            raise PodConflict(
                f"{self._where} mounts `{name}` at `{in_the_way}`, and {what} needs `{path}`",
                "mount it elsewhere",
            )
        return False

    def _is(self, there: JsonObject, volume: Volume, names: VolumeNames) -> bool:
        name = get_string(there, "name", f"{self._where}.volumeMounts")
        if isinstance(volume.source, HostPathSource):
            source = get_mapping(self._volumes.get(name, {}), "hostPath", _SPEC)
            return bool(source.get("path") == volume.source.host_path)
        return name == names.of_directory(volume)


def _set_environment(container: JsonObject, wanted: Mapping[str, str], where: str) -> None:
    kept = [
        variable
        for variable in get_mappings(container, "env", where)
        if get_string(variable, "name", f"{where}.env") not in wanted
    ]
    container["env"] = [*kept, *({"name": key, "value": value} for key, value in wanted.items())]
