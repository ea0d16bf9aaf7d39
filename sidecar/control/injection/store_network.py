"""How a cluster's sidecars reach object stores, unless the catalogue says it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from sidecar.contract.spec import CaBundle, PersistenceSpec, StoreSource, Volume


@dataclass(frozen=True, slots=True)
class Network:
    """The cluster's way out.

    Attributes:
        proxy, no_proxy, ca_bundle: as in :class:`StoreSource`, for each bucket that has none.
        proxy_secret: instead of ``proxy``, a Secret of each namespace of experiments with the
            keys HTTPS_PROXY, HTTP_PROXY and NO_PROXY, for a proxy that needs a login.
    """

    proxy: str | None = None
    no_proxy: str | None = None
    ca_bundle: CaBundle | None = None
    proxy_secret: str | None = None


NO_NETWORK: Final = Network()
"""Stores are reached directly, and have certificates of public authorities."""


def with_network(spec: PersistenceSpec, network: Network) -> PersistenceSpec:
    """The spec with the cluster's way to the stores for each bucket that has none of its own."""
    return replace(spec, volumes=tuple(_with_network(volume, network) for volume in spec.volumes))


def _with_network(volume: Volume, network: Network) -> Volume:
    source = volume.source
    if not isinstance(source, StoreSource):
        return volume
    proxied = source.proxy is not None
    return replace(
        volume,
        source=replace(
            source,
            proxy=source.proxy if proxied else network.proxy,
            no_proxy=source.no_proxy if proxied or source.no_proxy else network.no_proxy,
            ca_bundle=source.ca_bundle or network.ca_bundle,
        ),
    )
