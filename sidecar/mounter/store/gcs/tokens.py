"""Bearer tokens for Google Cloud Storage, for gcsfs and for the bulk path alike."""

from __future__ import annotations

import re
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

from sidecar.errors import LoginRejected, SecretInvalid, SidecarError, Unavailable
from sidecar.mounter.store.http.forks import renew_in_child
from sidecar.mounter.store.http.pool import Endpoint
from sidecar.mounter.store.http.retry import Retryable
from sidecar.mounter.store.login import Login
from sidecar.mounter.store.secrets import GcsCredentials
from sidecar.mounter.store.store_errors import Place

SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
FETCH_TIMEOUT_S = 10.0
MARGIN_S = 330.0
"""A token is renewed this long before it expires; gcsfs would do it 300 s before."""

_OAUTH_ERROR = re.compile(r"[a-z_]{1,40}")


class Tokens:
    """The token of one login, renewed before it expires.

    Every method is one attempt, raises ``Retryable`` for what may work later, and LoginRejected
    or SecretInvalid for what will not.
    """

    def __init__(self, login: Login[GcsCredentials], place: Place) -> None:
        self._login = login
        self._place = place
        self._identity: Any = None
        self._identity_of = -1
        self.after_fork()
        renew_in_child(self)

    def after_fork(self) -> None:
        """Make the lock anew (see :mod:`sidecar.mounter.store.http.forks`)."""
        self._lock = threading.Lock()

    def identity(self) -> Any:
        """google-auth's credentials, or None for anonymous."""
        with self._lock:
            return self._find_identity()

    def renew(self) -> None:
        """Get a token unless there is one that lives on."""
        with self._lock:
            identity = self._find_identity()
            failure = None if _lives_on(identity) else self._fetch(identity)
        if failure is not None:
            raise failure

    def header(self) -> dict[str, str]:
        """The ``Authorization`` header, empty for anonymous."""
        self.renew()
        identity = self._identity
        return {} if identity is None else {"authorization": f"Bearer {identity.token}"}

    def _fetch(self, identity: Any) -> SidecarError | Retryable | None:
        import urllib3
        from google.auth.exceptions import GoogleAuthError
        from google.auth.transport.urllib3 import Request

        with urllib3.PoolManager(retries=False, timeout=FETCH_TIMEOUT_S) as pool:
            try:
                identity.refresh(Request(pool))  # type: ignore[no-untyped-call]
            except GoogleAuthError as error:
                return self._refused(error)
        return None

    def _refused(self, error: Exception) -> SidecarError | Retryable:
        from google.auth.exceptions import TransportError

        if isinstance(error, TransportError):
            account = self._login.credentials.service_account or {}
            where = "the metadata server"
            if "token_uri" in account:
                where = str(Endpoint.parse(account["token_uri"]))
            return Place("GCS login", self._place.bucket, where).from_transport(error)
        details = error.args[1] if len(error.args) > 1 else {}
        code = str(details.get("error", "")) if isinstance(details, dict) else ""
        rejected = self._place.login_rejected(code if _OAUTH_ERROR.fullmatch(code) else "")
        if getattr(error, "retryable", False):
            return Retryable(Unavailable(rejected.what, "try again later"), "server_error")
        return rejected

    def _find_identity(self) -> Any:
        if self._identity_of != self._login.epoch:
            self._identity_of = self._login.epoch
            self._identity = self._make_identity(self._login.credentials)
        return self._identity

    def _make_identity(self, login: GcsCredentials) -> Any:
        if login.anonymous:
            return None
        if login.service_account is None:
            return self._ambient()
        from google.auth.exceptions import MalformedError
        from google.oauth2.service_account import Credentials

        try:
            return Credentials.from_service_account_info(  # type: ignore[no-untyped-call]
                dict(login.service_account), scopes=[SCOPE]
            )
        except (ValueError, MalformedError):
            pass  # raised outside, so that the parser's exception does not stay behind it
        raise SecretInvalid(
            f"{self._place}: the `private_key` of the service account cannot be read",
            "download the key file again and make the secret from it",
        )

    def _ambient(self) -> Any:
        import google.auth
        from google.auth.exceptions import DefaultCredentialsError

        try:
            identity, _project = google.auth.default(scopes=[SCOPE])
        except DefaultCredentialsError:
            pass
        else:
            return identity
        raise LoginRejected(
            f"{self._place}: the pod has no ambient identity",
            "name a `secret`, or give the pod's service account workload identity",
        )


def _lives_on(identity: Any) -> bool:
    if identity is None:
        return True
    if not identity.token:
        return False
    expiry: datetime | None = identity.expiry  # UTC without a zone
    if expiry is None:
        return True
    return expiry.replace(tzinfo=UTC) - datetime.now(UTC) > timedelta(seconds=MARGIN_S)
