"""Mounts and variables for each of the pod's own containers. The sidecar's is made elsewhere."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from sidecar.control.injection.object_fields import (
    JsonObject,
    get_mapping,
    get_mappings,
    get_string,
)
from sidecar.control.injection.pod_volumes import VolumeNames, volume_mount
from sidecar.errors import PodConflict
from sidecar.paths import contains
from sidecar.spec import HostPathSource, PersistenceSpec, Volume

_SPEC: Final = "pod.spec"


class _Mount(NamedTuple):
    """A ``volumeMounts`` entry, and the volume that it shows; None for the shared directory."""

    entry: JsonObject
    volume: Volume | None


def equip_container(
    container: JsonObject,
    spec: PersistenceSpec,
    pod_volumes: list[JsonObject],
    names: VolumeNames,
) -> None:
    """Add mounts and variables to one container, in place.

    Args:
        pod_volumes: the pod's ``volumes``, added ones included.

    Raises:
        PodConflict: a mount of its own is in the way.
        ManifestInvalid: the container has a wrong shape.
    """
    where = f"container `{get_string(container, 'name', f'{_SPEC}.containers')}`"
    own = get_mappings(container, "volumeMounts", where)
    added = []
    for mount in _mounts(spec, names):
        if not any(_shows(there, mount.volume, pod_volumes, names) for there in own):
            _refuse_overlap(own, mount, where)
            added.append(mount.entry)
    container["volumeMounts"] = [*own, *added]
    _set_environment(container, spec, where)


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


def _shows(
    there: JsonObject, volume: Volume | None, pod_volumes: list[JsonObject], names: VolumeNames
) -> bool:
    """Whether the container's own mount ``there`` is that of a hostPath or claim, at its path."""
    if volume is None or volume.is_bucket or there.get("mountPath") != volume.path:
        return False
    if isinstance(volume.source, HostPathSource):
        mounted: Any = next((v for v in pod_volumes if v["name"] == there.get("name")), {})
        path: Any = get_mapping(mounted, "hostPath", _SPEC).get("path")
        return bool(path == volume.source.host_path)
    return there.get("name") == names.of_directory(volume)


def _refuse_overlap(own: list[JsonObject], mount: _Mount, where: str) -> None:
    path, volume = mount.entry["mountPath"], mount.volume
    # To mount something below a bucket, the container runtime would make a directory in it.
    is_fuse = volume is None or volume.is_bucket
    for there in own:
        other = get_string(there, "mountPath", f"{where}.volumeMounts").rstrip("/")
        if other == path or (is_fuse and contains(path, other)):
            what = f"{volume.kind} volume `{volume.name}`" if volume else "the sidecar"
            raise PodConflict(
                f"{where} mounts `{there.get('name')}` at `{other}`, and {what} needs `{path}`",
                "mount it elsewhere",
            )


def _set_environment(container: JsonObject, spec: PersistenceSpec, where: str) -> None:
    # A kubelet replaces $(NAME), and turns $$ into $.
    wanted = {key: value.replace("$", "$$") for key, value in spec.environment.items()}
    kept = [
        variable
        for variable in get_mappings(container, "env", where)
        if get_string(variable, "name", f"{where}.env") not in wanted
    ]
    container["env"] = [*kept, *({"name": key, "value": value} for key, value in wanted.items())]
