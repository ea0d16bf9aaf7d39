"""Where a volume's disk cache is, and who shares it. Only computes names."""

from __future__ import annotations

import os
from pathlib import Path

from sidecar.contract.pod import NAMESPACE_VARIABLE, SERVICE_ACCOUNT_NAME_VARIABLE
from sidecar.contract.spec import PersistenceSpec, StoreSource, Volume


def folder(spec: PersistenceSpec, volume: Volume, identity: str) -> Path:
    """The folder of the cache of a volume that has one.

    Args:
        identity: names the volume's folders.
    """
    match volume.options.cache:
        case "node":
            return Path(spec.roots.node_cache)
        case "memory":
            return Path(spec.roots.memory_cache) / identity
        case _:
            return Path(spec.roots.state) / identity / "cache"


def owner(spec: PersistenceSpec, volume: Volume) -> str:
    """Whose objects a volume has in its cache. Pods with another owner do not find them.

    A login counts by its name, not by its content, which is rotated.
    """
    if volume.options.cache != "node":
        return ""
    assert isinstance(volume.source, StoreSource)
    parts = [os.environ.get(NAMESPACE_VARIABLE, "")]
    if spec.node_cache.scope == "login":
        source = volume.source
        ambient = os.environ.get(SERVICE_ACCOUNT_NAME_VARIABLE, "") if not source.secret else ""
        parts += [source.secret or "", source.secret_key or "", ambient]
    return "".join(f"{part}\0" for part in parts)
