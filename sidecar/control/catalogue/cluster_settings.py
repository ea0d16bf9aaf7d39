"""What an admin sets for the whole cluster: ``mountSidecar`` in the catalogue's document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sidecar.contract.options import MOST_BYTES
from sidecar.contract.paths import check_absolute_path, contains
from sidecar.contract.spec import CacheScope, NodeCache
from sidecar.contract.spec_document import nearest
from sidecar.contract.spec_rules import SYSTEM_DIRECTORIES
from sidecar.control.catalogue.option_rules import Bounds, Values, parse_bounds, parse_options
from sidecar.control.catalogue.quantity import parse_quantity
from sidecar.control.catalogue.yaml_document import YamlValue
from sidecar.errors import CatalogueInvalid, MountPathInvalid, OptionInvalid, UnknownKey
from sidecar.units import MIB

KEY = "mountSidecar"
_KNOWN = ("options", "bounds", "nodeCache")
_NODE_CACHE_KNOWN = ("path", "size", "scope")
_LEAST_BYTES = 64 * MIB
_SHARED = (
    *("/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/usr", "/var"),  # noqa: S108
    *(f"/var/{name}" for name in ("cache", "lib", "log", "mail", "run", "spool", "tmp")),
)
"""Directories that the node and its programs use (Filesystem Hierarchy Standard)."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """Defaults of the cluster, and what pods may change.

    Attributes:
        options: for every bucket whose volume does not set them.
        bounds: on what pods set.
        node_cache: the cache that the pods of a node share; None: no such cache.
    """

    options: Values = field(default_factory=dict)
    bounds: Bounds = field(default_factory=dict)
    node_cache: NodeCache | None = None


def parse_cluster_settings(section: YamlValue, where: str) -> ClusterSettings:
    """Parse ``mountSidecar``.

    Args:
        section: as parsed; None: there is none.
        where: how messages name it.

    Raises:
        ConfigError: naming the path inside it.
    """
    settings = _mapping(section, where, _KNOWN)
    return ClusterSettings(
        parse_options(settings.get("options"), f"{where}.options", of_pod=True),
        parse_bounds(settings.get("bounds"), f"{where}.bounds"),
        _node_cache(settings.get("nodeCache"), f"{where}.nodeCache"),
    )


def _mapping(value: YamlValue, where: str, known: tuple[str, ...]) -> Mapping[str, YamlValue]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CatalogueInvalid(f"{where}: must be a mapping")
    for key in value:
        if key not in known:
            raise UnknownKey(f"unknown key `{where}.{key}`{nearest(key, list(known))}")
    return value


def _node_cache(section: YamlValue, where: str) -> NodeCache | None:
    settings = _mapping(section, where, _NODE_CACHE_KNOWN)
    if not settings:
        return None
    path, scope = settings.get("path"), settings.get("scope", "namespace")
    if not isinstance(path, str):
        raise MountPathInvalid(f"{where}.path: must be a directory of the node")
    check_absolute_path(path, f"{where}.path", MountPathInvalid)
    if path in _SHARED or any(contains(one, path) for one in SYSTEM_DIRECTORIES):
        raise MountPathInvalid(
            f"{where}.path: `{path}` is the node's, and would become the cache's alone",
            "name a folder of its own, such as `/var/lib/mount-sidecar/cache`",
        )
    return NodeCache(
        host_path=path,
        size_bytes=_size_bytes(settings.get("size"), f"{where}.size"),
        scope=_scope(scope, f"{where}.scope"),
    )


def _scope(value: YamlValue, where: str) -> CacheScope:
    if value == "namespace":
        return "namespace"
    if value == "login":
        return "login"
    raise OptionInvalid(f"{where}: must be `namespace` or `login`")


def _size_bytes(value: YamlValue, where: str) -> int:
    """Required: the folder has one budget, which outlives the pods, so no pod could guess it."""
    problem = f"{where}: must be a quantity such as `100Gi`, at least {_LEAST_BYTES // MIB}Mi"
    try:
        size_bytes = parse_quantity(str(value)).rounded_up
    except ValueError:
        raise OptionInvalid(problem) from None
    if isinstance(value, bool) or not _LEAST_BYTES <= size_bytes <= MOST_BYTES:
        raise OptionInvalid(problem)
    return size_bytes
