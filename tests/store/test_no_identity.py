"""Without a login, Google's store says what to do, in a pod and by hand."""

from __future__ import annotations

import google.auth
import pytest
from google.auth.exceptions import DefaultCredentialsError

from sidecar.errors import LoginRejected
from sidecar.mounter.store.gcs import sdk
from sidecar.mounter.store.store_errors import StoreErrors


def test_what_it_names_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """`sidecar try` has no `secret`."""

    def nothing(*_: object) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", nothing)
    with pytest.raises(LoginRejected) as caught:
        sdk.pod_identity(StoreErrors("GCS", "bucket", "host"))
    assert "application-default login`, or add --anonymous" in caught.value.line()
