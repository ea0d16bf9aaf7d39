"""Object stores behind one protocol: :mod:`sidecar.mounter.store.interface`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreName, StoreSource
    from sidecar.mounter.store.interface import Store, StoreObserver
    from sidecar.mounter.store.login import CredentialSource


def import_stores(kinds: Iterable[StoreName]) -> None:
    """Import the modules of these kinds of stores, without their SDKs."""
    for kind in kinds:
        importlib.import_module(f"{__name__}.{kind}.store")
        if kind == "gcs":
            from sidecar.mounter.store.gcs.sdk import import_login

            import_login()


def open_store(
    source: StoreSource,
    credentials: CredentialSource,
    *,
    retry_budget_s: float,
    observer: StoreObserver,
    with_metadata: bool = False,
) -> Store:
    """The store of one bucket. It is first asked by :meth:`Store.probe`.

    Only the modules of this kind of store are imported, and its SDK with the first call that
    needs it (docs/decisions/0029-what-s3fs-gcsfs-and-adlfs-do.md).

    Args:
        retry_budget_s: how long each call waits out an outage.
        with_metadata: listings bring the objects' metadata; S3's cannot.

    Raises:
        CredentialError: the secret cannot be used.
    """
    if source.store == "s3":
        from sidecar.mounter.store.s3.store import S3Store

        return S3Store(source, credentials, retry_budget_s=retry_budget_s, observer=observer)
    if source.store == "gcs":
        from sidecar.mounter.store.gcs.store import GcsStore

        return GcsStore(
            source,
            credentials,
            retry_budget_s=retry_budget_s,
            observer=observer,
            with_metadata=with_metadata,
        )
    from sidecar.mounter.store.azure.store import AzureStore

    return AzureStore(
        source,
        credentials,
        retry_budget_s=retry_budget_s,
        observer=observer,
        with_metadata=with_metadata,
    )
