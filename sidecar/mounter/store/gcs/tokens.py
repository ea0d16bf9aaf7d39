"""Bearer tokens for Google Cloud Storage, renewed before they expire. Imports no SDK."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.mounter.store.gcs import sdk
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.store_errors import StoreErrors

MARGIN_S = 330.0
"""A token is renewed this long before it expires. gcsfs would renew it 300 s before."""


class Tokens:
    """The token of one login. Safe to use from any thread.

    A method makes one attempt. It raises ``Retryable`` if a later attempt may work, else
    LoginRejected or SecretInvalid.
    """

    def __init__(self, login: Login[GcsCredentials], errors: StoreErrors) -> None:
        self._login = login
        self._errors = errors
        self._identity: Any = None
        self._identity_of = -1
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._lock = threading.Lock()

    def identity(self) -> Any:
        """google-auth's credentials with a token that is valid for a while; None for anonymous."""
        with self._lock:
            identity = self._find_identity()
            if not _lives_on(identity):
                account = self._login.credentials.service_account or {}
                sdk.fetch_token(identity, account.get("token_uri", ""), self._errors)
            return identity

    def header(self) -> dict[str, str]:
        """The ``Authorization`` header; empty for anonymous."""
        identity = self.identity()
        return {} if identity is None else {"authorization": f"Bearer {identity.token}"}

    def _find_identity(self) -> Any:
        if self._identity_of != self._login.epoch:
            self._identity_of = self._login.epoch
            self._identity = self._make_identity(self._login.credentials)
        return self._identity

    def _make_identity(self, login: GcsCredentials) -> Any:
        if login.anonymous:
            return None
        if login.service_account is None:
            return sdk.pod_identity(self._errors)
        return sdk.service_account(login.service_account, self._errors)


def _lives_on(identity: Any) -> bool:
    if identity is None:
        return True
    if not identity.token:
        return False
    expiry: datetime | None = identity.expiry  # UTC without a zone
    if expiry is None:
        return True
    return expiry.replace(tzinfo=UTC) - datetime.now(UTC) > timedelta(seconds=MARGIN_S)
