"""The login of S3: from the keys of a secret, and of the environment.

The keys are the source document's, with upstream's synonyms. Rules: see :mod:`..secrets`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sidecar.mounter.store.secrets import SecretFields

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

_KEY_ID = ("AWS_ACCESS_KEY_ID", "aws_access_key_id", "access_key_id")
_SECRET = ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", "secret_access_key")
_TOKEN = (
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",  # today's name
    "aws_security_token",
    "aws_session_token",
    "security_token",
    "session_token",
)
_REGION = ("AWS_REGION", "AWS_DEFAULT_REGION", "aws_region", "region")
_ENDPOINT = ("AWS_ENDPOINT_URL", "aws_endpoint_url", "endpoint_url")
_VERIFY_TLS = ("AWS_VERIFY_SSL", "aws_verify_ssl", "verify_ssl")
_USE_TLS = ("AWS_USE_SSL", "aws_use_ssl", "use_ssl")
_DUAL_STACK = ("AWS_USE_DUALSTACK_ENDPOINT",)
_ENVIRONMENT = tuple(
    name for name in (*_ENDPOINT, *_REGION, *_VERIFY_TLS, *_USE_TLS, *_DUAL_STACK) if name.isupper()
)


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """How to log in to S3.

    Attributes:
        region: None for the SDK's default.
        endpoint_url: None for AWS itself.
        verify_tls: whether the server's certificate is checked.
        use_tls: whether TLS is spoken if ``endpoint_url`` is None.
        dual_stack: whether AWS is asked under names that also have addresses of IPv6.
        ambient: the SDK's default chain provides the login (IRSA, instance profile, ...).
        anonymous: requests are not signed.
    """

    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str | None = field(default=None, repr=False)
    endpoint_url: str | None = field(default=None, repr=False)
    verify_tls: bool = True
    use_tls: bool = True
    dual_stack: bool = False
    ambient: bool = False
    anonymous: bool = False

    @classmethod
    def from_fields(cls, fields: SecretFields | None, source: StoreSource) -> S3Credentials:
        """From a secret's fields, or without a secret.

        Raises:
            SecretKeyMissing: a key is absent or empty.
            SecretInvalid: a value that no login can use.
        """
        environment = SecretFields.from_environment(_ENVIRONMENT)
        dual_stack = environment.flag(*_DUAL_STACK, default=False)
        if fields is None:
            return cls(
                region=environment.text(*_REGION),
                endpoint_url=environment.url(*_ENDPOINT),
                verify_tls=environment.flag(*_VERIFY_TLS, default=True),
                use_tls=environment.flag(*_USE_TLS, default=True),
                dual_stack=dual_stack,
                ambient=not source.anonymous,
                anonymous=source.anonymous,
            )
        return cls(
            access_key_id=fields.required(*_KEY_ID),
            secret_access_key=fields.required(*_SECRET),
            session_token=fields.text(*_TOKEN),
            region=fields.text(*_REGION),
            # As in the SDK: the environment's endpoint, if the secret names none.
            endpoint_url=fields.url(*_ENDPOINT) or environment.url(*_ENDPOINT),
            verify_tls=fields.flag(*_VERIFY_TLS, default=True),
            use_tls=fields.flag(*_USE_TLS, default=True),
            dual_stack=dual_stack,
        )
