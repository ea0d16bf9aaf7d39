"""The login of Google Cloud Storage: a service account's key file.

The keys are those of the file as Google makes it. Rules: see :mod:`..secrets`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.mounter.store.secrets import SecretFields, is_base64

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

_EMULATOR = "STORAGE_EMULATOR_HOST"


@dataclass(frozen=True, slots=True)
class GcsCredentials:
    """How to log in to Google Cloud Storage.

    Attributes:
        service_account: the key file's content, for google-auth's
            ``from_service_account_info``; None unless a secret is named.
        endpoint_url: None for Google itself.
        ambient: the SDK's default chain provides the login (workload identity, ...).
        anonymous: requests carry no token.
    """

    service_account: Mapping[str, str] | None = field(default=None, repr=False)
    endpoint_url: str | None = field(default=None, repr=False)
    ambient: bool = False
    anonymous: bool = False

    @classmethod
    def from_fields(cls, fields: SecretFields | None, source: StoreSource) -> GcsCredentials:
        """From a secret's fields, or without a secret.

        Raises:
            SecretKeyMissing: a key is absent or empty.
            SecretInvalid: a value that no login can use.
        """
        endpoint_url = _environment().url(_EMULATOR)
        if fields is None:
            return cls(
                endpoint_url=endpoint_url,
                ambient=not source.anonymous,
                anonymous=source.anonymous,
            )
        fields.need("type")
        # Other types may name commands and addresses for fetching a token.
        fields.check(_is_service_account, "type", "is not `service_account`")
        fields.required("client_email")
        fields.need("token_uri")
        fields.url("token_uri")
        fields.need("private_key")
        fields.check(_is_private_key, "private_key", "is not a private key in PEM form")
        return cls(
            service_account={
                name: _unescaped(text) if name == "private_key" else text
                for name, text in fields.texts().items()
            },
            endpoint_url=endpoint_url,
        )


def _environment() -> SecretFields:
    emulator = os.environ.get(_EMULATOR, "")
    if emulator and "://" not in emulator:  # Google's own clients accept it, too
        emulator = f"http://{emulator}"
    return SecretFields("the environment", {_EMULATOR: emulator})


def _is_service_account(value: object) -> bool:
    return value == "service_account"


def _is_private_key(value: object) -> bool:
    pem = re.fullmatch(
        r"-----BEGIN (?:RSA )?PRIVATE KEY-----(.+)-----END (?:RSA )?PRIVATE KEY-----\s*",
        _unescaped(str(value)),
        re.DOTALL,
    )
    return pem is not None and is_base64("".join(pem[1].split()))


def _unescaped(key: str) -> str:
    """A private key whose line ends were written as a backslash and an ``n``."""
    return key.replace("\\n", "\n")
