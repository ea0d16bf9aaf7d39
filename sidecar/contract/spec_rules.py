"""The rules that every spec keeps, whoever wrote it. Text only: no file is looked at.

The resolver checks the spec that it made, and loading checks a file's spec. The form was checked
before.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Final
from urllib.parse import urlsplit

from sidecar.contract.paths import (
    check_absolute_path,
    check_parts,
    contains,
    name_problem,
    prefix_problem,
)
from sidecar.contract.spec import Kind, PersistenceSpec, Roots, StoreSource, Volume
from sidecar.errors import (
    DuplicateSelection,
    MountPathInvalid,
    PathOverlap,
    RunPathInvalid,
    SpecInvalid,
)

SYSTEM_DIRECTORIES: Final = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/sidecar",
    "/proc",
    "/run/secrets",
    "/run/sidecar",
    "/sbin",
    "/sys",
    "/usr/bin",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/bin",
    "/usr/local/lib",
    "/usr/local/sbin",
    "/usr/sbin",
    "/usr/share/ca-certificates",
    "/var/run/secrets",
)
"""The kernel's directories, the image's (where programs are, and where they look: Dockerfile), and
those of tokens. In the image ``/var/run`` is ``/run``: the sidecar's secrets are there, too."""

# A host's name has only these characters. Others could send the request to another host.
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_PROXY = re.compile(rf"http://({_HOST.pattern}|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?/?")


def proxy_problem(url: str) -> str | None:
    """What is wrong with a proxy's URL in a catalogue or a spec, which many may read; or None."""
    try:
        port = urlsplit(url).port
    except ValueError:
        return "must look like http://HOST:PORT"
    if "@" in url:
        return "must have no login; put HTTPS_PROXY with the login into the volume's secret"
    if not _PROXY.fullmatch(url) or port == 0:
        return "must look like http://HOST:PORT"
    return None


def shared_path(roots: Roots, kind: Kind, name: str) -> str:
    """The path of a bucket without ``mountPath``."""
    return f"{roots.shared}/{kind}/{name}"


def own_spec(text: str) -> PersistenceSpec | None:
    """The spec that an injector of this version wrote; None if it may be another's.

    The text's digest is known to be an injector's, so only the rules are checked.

    Raises:
        ConfigError: see :func:`check_spec`.
    """
    try:
        document = json.loads(text)
        spec = PersistenceSpec.from_document(document)
        if json.loads(spec.to_json()) != document:
            return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    check_spec(spec)
    return spec


def check_spec(spec: PersistenceSpec) -> None:
    """Refuse a spec that would mount, read or write where no volume may be.

    Raises:
        MountPathInvalid: a path is not absolute and normalised, or a bucket is mounted elsewhere
            than at its path or below the shared root.
        PathOverlap: two volumes overlap, or one and a directory of the sidecar or the system.
        DuplicateSelection: two volumes have one kind and name.
        RunPathInvalid: the run's path or outputs directory leaves the outputs volume.
        SpecInvalid: a name of a bucket, a secret or a volume is not possible.
    """
    _check_roots(spec.roots)
    for volume in spec.volumes:
        _check_volume(volume, spec.roots)
    _check_pairs(spec.volumes)
    if spec.run:
        check_parts(spec.run, "the run's path", RunPathInvalid)
    _check_outputs_path(spec)


def _check_roots(roots: Roots) -> None:
    for name, root in asdict(roots).items():
        if root is not None:
            check_absolute_path(root, f"roots.{name}", MountPathInvalid)
    # Without the termination message: the kubelet puts that into a directory of the system.
    for what, directory in _directories(roots):
        for system in SYSTEM_DIRECTORIES:
            if _overlap(directory, system):
                raise PathOverlap(
                    f"the sidecar's {what} at `{directory}` overlaps the system's `{system}`"
                )
        if directory != roots.shared and _overlap(directory, roots.shared):
            raise PathOverlap(
                f"the sidecar's {what} at `{directory}` overlaps its shared root at "
                f"`{roots.shared}`, which the experiment sees"
            )


def _directories(roots: Roots) -> list[tuple[str, str]]:
    """The sidecar's own directories, and what messages call them."""
    own = [("shared root", roots.shared), ("secrets root", roots.secrets)]
    own.append(("state root", roots.state))
    own.append(("node's cache", roots.node_cache))
    own.append(("cache in memory", roots.memory_cache))
    return own


def _check_volume(volume: Volume, roots: Roots) -> None:
    if problem := name_problem(volume.name):
        raise SpecInvalid(f"the name of a {volume.kind} volume {problem}")
    check_absolute_path(volume.path, f"the path of volume {volume.label}", MountPathInvalid)
    shared = shared_path(roots, volume.kind, volume.name)
    if isinstance(volume.source, StoreSource):
        for source in volume.stores:
            _check_store(source, volume)
        if volume.mounted_at not in (volume.path, shared):
            raise MountPathInvalid(
                f"volume {volume.label} is mounted at neither its path nor `{shared}`"
            )
        if volume.path == shared:
            return
    reserved = [*_directories(roots), ("termination message", roots.termination_message)]
    for what, path in reserved:
        if _overlap(volume.path, path):
            raise _reserved(volume, f"the sidecar's {what} at `{path}`")
    for path in SYSTEM_DIRECTORIES:
        if _overlap(volume.path, path):
            raise _reserved(volume, f"the system's `{path}`")


def _reserved(volume: Volume, what: str) -> PathOverlap:
    return PathOverlap(
        f"{volume.kind} volume `{volume.name}` at `{volume.path}` overlaps {what}",
        "change its `mountPath` in the catalogue",
    )


def _check_store(source: StoreSource, volume: Volume) -> None:
    # These become parts of paths: of the store's keys, and below the secrets root.
    names = {"bucket": source.bucket, "secret": source.secret, "secret key": source.secret_key}
    for what, name in names.items():
        if name is not None and (problem := name_problem(name)):
            raise SpecInvalid(f"volume {volume.label}: the name of its {what} {problem}")
    if source.prefix:
        problem = prefix_problem(source.prefix.removesuffix("/"))
        if problem is None and not source.prefix.endswith("/"):
            problem = "does not end in `/`"
        if problem is not None:
            raise SpecInvalid(f"volume {volume.label}: its prefix {problem}")
    if source.proxy is not None and (problem := proxy_problem(source.proxy)):
        raise SpecInvalid(f"volume {volume.label}: its proxy {problem}")
    if source.ca_bundle is not None:
        for name in (source.ca_bundle.name, source.ca_bundle.key):
            if problem := name_problem(name):
                raise SpecInvalid(f"volume {volume.label}: the name of its CA bundle {problem}")
    for what, host in {"account": source.account, "endpoint": source.endpoint_suffix}.items():
        if host is not None and not _HOST.fullmatch(host):
            raise SpecInvalid(f"volume {volume.label}: its {what} cannot be part of a host's name")


def _check_pairs(volumes: Sequence[Volume]) -> None:
    seen: set[str] = set()
    for volume in volumes:
        if volume.label in seen:
            raise DuplicateSelection(f"two volumes are `{volume.label}`", "name it once")
        seen.add(volume.label)
    # Sorted by the parts of their paths, so that a directory's content follows it at once.
    for outer, inner in pairwise(sorted(volumes, key=lambda volume: volume.path.split("/"))):
        if contains(outer.path, inner.path):
            raise PathOverlap(
                f"{outer.kind} volume `{outer.name}` at `{outer.path}` and "
                f"{inner.kind} volume `{inner.name}` at `{inner.path}` overlap",
                "select one of them, or change a `mountPath` in the catalogue",
            )


def _check_outputs_path(spec: PersistenceSpec) -> None:
    if spec.outputs_path is None:
        return
    check_absolute_path(spec.outputs_path, "the run's outputs directory", RunPathInvalid)
    outputs = next((volume for volume in spec.volumes if volume.kind == "outputs"), None)
    if outputs is None or not contains(outputs.path, spec.outputs_path):
        raise RunPathInvalid(
            f"the run's outputs directory `{spec.outputs_path}` is not in an outputs volume"
        )


def _overlap(one: str, other: str) -> bool:
    return contains(one, other) or contains(other, one)
