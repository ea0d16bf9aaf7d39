"""Secret files and ambient identity, as what the stores log in with.

The formats are the source document's, with upstream's synonyms. A secret's value never
leaves this module but in the fields of the results, which their ``repr`` leaves out.
Errors name files and keys. Tracebacks may be printed with the variables of their
frames (pytest, error trackers), and exceptions keep the ones they were raised under;
so no function here raises while one of its variables holds a value, and no parser's
exception, which holds the text, is ever in the context of an error.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sidecar.errors import (
    SecretFileMissing,
    SecretIncomplete,
    SecretInvalid,
    SecretKeyMissing,
    SecretNotJson,
    SpecInvalid,
)

if TYPE_CHECKING:
    from sidecar.spec import StoreSource


@dataclass(frozen=True, slots=True)
class S3Credentials:
    """How to log in to S3.

    Attributes:
        region: None for the SDK's default.
        endpoint_url: None for AWS itself.
        verify_tls: whether the server's certificate is checked.
        use_tls: whether TLS is spoken where ``endpoint_url`` is None.
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
    ambient: bool = False
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class GcsCredentials:
    """How to log in to Google Cloud Storage.

    Attributes:
        service_account: the key file's content, as google-auth's
            ``from_service_account_info`` takes it; None unless a secret is named.
        endpoint_url: None for Google itself.
        ambient: the SDK's default chain provides the login (workload identity, ...).
        anonymous: requests carry no token.
    """

    service_account: Mapping[str, str] | None = field(default=None, repr=False)
    endpoint_url: str | None = field(default=None, repr=False)
    ambient: bool = False
    anonymous: bool = False


@dataclass(frozen=True, slots=True)
class AzureCredentials:
    """How to log in to Azure Blob Storage.

    Attributes:
        account_name: the connection string's, else the secret's, else the bucket URL's.
        account_key: base64; None where ``sas_token`` or an identity takes its place.
        connection_string: as written. All that it says is also in the other fields.
        sas_token: without a leading ``?``.
        blob_endpoint: the account's URL, such as ``https://account.blob.core.windows.net``.
        ambient: the SDK's default chain provides the login (workload identity, ...).
        anonymous: requests carry no authorisation.
    """

    account_name: str | None = field(default=None, repr=False)
    account_key: str | None = field(default=None, repr=False)
    connection_string: str | None = field(default=None, repr=False)
    sas_token: str | None = field(default=None, repr=False)
    blob_endpoint: str | None = field(default=None, repr=False)
    ambient: bool = False
    anonymous: bool = False


Credentials = S3Credentials | GcsCredentials | AzureCredentials


class CredentialSource:
    """The credentials of one volume, read again when the secret is rotated.

    A kubelet replaces the files of a secret by swapping a symbolic link, so one read
    sees one version. Safe to use from several threads.
    """

    def __init__(self, source: StoreSource, secrets_root: str) -> None:
        self._source = source
        self._secrets_root = secrets_root
        self._lock = threading.Lock()
        self._loaded: Credentials | None = None

    def __repr__(self) -> str:
        return f"CredentialSource({self._source.url!r})"

    def current(self) -> Credentials:
        """What was read last; read now the first time.

        Raises:
            CredentialError: as :func:`load_credentials`.
        """
        with self._lock:
            if self._loaded is None:
                self._loaded = load_credentials(self._source, self._secrets_root)
            return self._loaded

    def refresh(self) -> bool:
        """Read again. Whether anything changed.

        Raises:
            CredentialError: the secret cannot be read any more; what was read last stays.
        """
        with self._lock:
            before = self._loaded
            self._loaded = load_credentials(self._source, self._secrets_root)
            return self._loaded != before


def load_credentials(source: StoreSource, secrets_root: str) -> Credentials:
    """Read what a bucket's store logs in with.

    Args:
        source: the bucket. Without a secret, the ambient identity (or none, where
            ``anonymous``).
        secrets_root: directory with ``<secret>/<secretKey>`` files.

    Raises:
        SecretFileMissing: no such file, or it cannot be read.
        SecretNotJson: not a JSON object. Commas before ``}`` and ``]`` are forgiven.
        SecretKeyMissing: a key is absent or empty.
        SecretInvalid: a value that no login can use.
        SecretIncomplete: the spec has ``secret`` or ``secret_key`` alone.
    """
    environment = _from_environment()
    if source.secret is None and source.secret_key is None:
        fields = None
    elif source.secret is None or source.secret_key is None:
        raise SecretIncomplete(
            f"{source.url}: `secret` and `secret_key` come together",
            "give both, or neither for ambient identity",
        )
    else:
        fields = _from_file(secrets_root, source.secret, source.secret_key)
    if source.store == "s3":
        return _s3(fields, environment, anonymous=source.anonymous)
    if source.store == "gcs":
        return _gcs(fields, environment, anonymous=source.anonymous)
    return _azure(fields, source)


# --- one secret's fields -------------------------------------------------------------


class _Fields:
    """Named values whose ``repr`` shows none. The first name given is the usual one."""

    def __init__(self, where: str, values: Mapping[str, object]) -> None:
        self.where = where
        self._values = {name: _stripped(value) for name, value in values.items()}

    def __repr__(self) -> str:
        return f"_Fields({self.where!r})"

    def text(self, *names: str) -> str | None:
        """The first of ``names`` that is not absent, null or empty.

        Raises:
            SecretInvalid: it is not a string, or not one line of printable ASCII.
        """
        name = self.first(*names)
        if name is None:
            return None
        self.check(_is_line, name, "is not one line of ASCII text")
        return str(self._values[name])

    def required(self, *names: str) -> str:
        """As :meth:`text`.

        Raises:
            SecretKeyMissing: as :meth:`need`.
            SecretInvalid: as :meth:`text`.
        """
        return str(self.text(self.need(*names)))

    def flag(self, *names: str, default: bool) -> bool:
        """A boolean: JSON's, or upstream's words for one.

        Raises:
            SecretInvalid: anything else.
        """
        name = self.first(*names)
        if name is None:
            return default
        self.check(_is_flag, name, "is neither true nor false")
        return _FLAGS[str(self._values[name]).lower()]

    def url(self, *names: str) -> str | None:
        """An endpoint's URL, without a trailing slash.

        Raises:
            SecretInvalid: not ``http://`` or ``https://`` and a host, or with a login in it.
        """
        name = self.first(*names)
        if name is None:
            return None
        self.check(_is_endpoint, name, "is not a plain http:// or https:// URL")
        return str(self._values[name]).rstrip("/")

    def check(self, holds: Callable[[object], bool], name: str, problem: str) -> None:
        """Raise SecretInvalid, naming ``name``, unless its value ``holds``."""
        if not holds(self._values.get(name)):
            raise SecretInvalid(f"{self.where}: `{name}` {problem}")

    def first(self, *names: str) -> str | None:
        """The first of ``names`` that is not absent, null or empty; None where all are."""
        return next((name for name in names if self._values.get(name) not in (None, "")), None)

    def need(self, *names: str) -> str:
        """As :meth:`first`.

        Raises:
            SecretKeyMissing: all are absent, null or empty.
        """
        name = self.first(*names)
        if name is None:
            raise SecretKeyMissing(
                f"{self.where}: `{names[0]}` is missing or empty", "add it to the secret"
            )
        return name

    def texts(self) -> dict[str, str]:
        """Every value that is a string."""
        return {name: value for name, value in self._values.items() if isinstance(value, str)}


_FLAGS = {
    **dict.fromkeys(("true", "yes", "1", "on"), True),
    **dict.fromkeys(("false", "no", "0", "off"), False),
}


def _stripped(value: object) -> object:
    # `echo key | kubectl create secret` leaves a newline, which no login has.
    return value.strip() if isinstance(value, str) else value


def _is_line(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable()


def _is_flag(value: object) -> bool:
    return str(value).lower() in _FLAGS


def _is_endpoint(value: object) -> bool:
    if not isinstance(value, str) or not value.isprintable():
        return False
    try:
        parts = urlsplit(value)
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        return False
    return bool(
        parts.scheme in ("http", "https")
        and parts.hostname
        and port_is_valid
        and "@" not in parts.netloc
        and not parts.query
        and not parts.fragment
        and " " not in value
    )


def _from_environment() -> _Fields:
    """The endpoints and regions that the sidecar's own environment may set."""
    names = (*_S3_ENDPOINT, *_S3_REGION, *_S3_VERIFY_TLS, *_S3_USE_TLS)
    values = {name: os.environ.get(name) for name in names if name.isupper()}
    emulator = os.environ.get(_EMULATOR, "")
    if emulator and "://" not in emulator:  # Google's own clients take it so, too
        emulator = f"http://{emulator}"
    return _Fields("the environment", {**values, _EMULATOR: emulator})


def _from_file(secrets_root: str, secret: str, secret_key: str) -> _Fields:
    path = Path(secrets_root, secret, secret_key)
    where = f"secret file {path}"
    problem = ""
    try:
        content = path.read_bytes()
    except OSError as failure:
        problem = str(failure.strerror).lower()
    if problem:
        raise SecretFileMissing(
            f"{where}: {problem}",
            f"`kubectl create secret generic {secret} --from-file={secret_key}=FILE`",
        )
    values = _parse(content)
    del content
    if isinstance(values, str):
        raise SecretNotJson(f"{where}: {values}", "the key of the secret must hold one JSON object")
    return _Fields(where, values)


# A string, passed over whole; or a comma that only white space parts from a closing bracket.
_STRING_OR_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)


def _parse(content: bytes) -> dict[str, object] | str:
    """The JSON object in ``content``, or what is wrong with it."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return "not UTF-8"
    try:
        values = json.loads(_STRING_OR_TRAILING_COMMA.sub(_forgiven, text))
    except json.JSONDecodeError as bad:
        return f"not JSON (line {bad.lineno}, column {bad.colno})"
    except (ValueError, RecursionError):  # a number of thousands of digits, endless nesting
        return "not JSON"
    return values if isinstance(values, dict) else "not a JSON object"


def _forgiven(match: re.Match[str]) -> str:
    """A string as it is; for a comma after a value a space, which keeps columns right."""
    found = match.group()
    if found != ",":
        return found
    before = match.string[: match.start()].rstrip()
    return found if before.endswith(("{", "[", ",")) or not before else " "


# --- S3 ------------------------------------------------------------------------------

_S3_KEY_ID = ("AWS_ACCESS_KEY_ID", "aws_access_key_id", "access_key_id")
_S3_SECRET = ("AWS_SECRET_ACCESS_KEY", "aws_secret_access_key", "secret_access_key")
_S3_TOKEN = (
    "AWS_SECURITY_TOKEN",
    "AWS_SESSION_TOKEN",  # today's name
    "aws_security_token",
    "aws_session_token",
    "security_token",
    "session_token",
)
_S3_REGION = ("AWS_REGION", "AWS_DEFAULT_REGION", "aws_region", "region")
_S3_ENDPOINT = ("AWS_ENDPOINT_URL", "aws_endpoint_url", "endpoint_url")
_S3_VERIFY_TLS = ("AWS_VERIFY_SSL", "aws_verify_ssl", "verify_ssl")
_S3_USE_TLS = ("AWS_USE_SSL", "aws_use_ssl", "use_ssl")


def _s3(fields: _Fields | None, environment: _Fields, *, anonymous: bool) -> S3Credentials:
    if fields is None:
        return S3Credentials(
            region=environment.text(*_S3_REGION),
            endpoint_url=environment.url(*_S3_ENDPOINT),
            verify_tls=environment.flag(*_S3_VERIFY_TLS, default=True),
            use_tls=environment.flag(*_S3_USE_TLS, default=True),
            ambient=not anonymous,
            anonymous=anonymous,
        )
    return S3Credentials(
        access_key_id=fields.required(*_S3_KEY_ID),
        secret_access_key=fields.required(*_S3_SECRET),
        session_token=fields.text(*_S3_TOKEN),
        region=fields.text(*_S3_REGION),
        # As the SDK has it: the environment where the login itself names no endpoint.
        endpoint_url=fields.url(*_S3_ENDPOINT) or environment.url(*_S3_ENDPOINT),
        verify_tls=fields.flag(*_S3_VERIFY_TLS, default=True),
        use_tls=fields.flag(*_S3_USE_TLS, default=True),
    )


# --- Google Cloud Storage --------------------------------------------------------------

_EMULATOR = "STORAGE_EMULATOR_HOST"


def _gcs(fields: _Fields | None, environment: _Fields, *, anonymous: bool) -> GcsCredentials:
    endpoint_url = environment.url(_EMULATOR)
    if fields is None:
        return GcsCredentials(endpoint_url=endpoint_url, ambient=not anonymous, anonymous=anonymous)
    fields.need("type")
    # Other types may name commands and addresses to fetch a token from.
    fields.check(_is_service_account, "type", "is not `service_account`")
    fields.required("client_email")
    fields.need("token_uri")
    fields.url("token_uri")
    fields.need("private_key")
    fields.check(_is_private_key, "private_key", "is not a private key in PEM form")
    return GcsCredentials(
        service_account={
            name: _unescaped(text) if name == "private_key" else text
            for name, text in fields.texts().items()
        },
        endpoint_url=endpoint_url,
    )


def _is_service_account(value: object) -> bool:
    return value == "service_account"


def _is_private_key(value: object) -> bool:
    pem = re.fullmatch(
        r"-----BEGIN (?:RSA )?PRIVATE KEY-----(.+)-----END (?:RSA )?PRIVATE KEY-----\s*",
        _unescaped(str(value)),
        re.DOTALL,
    )
    return pem is not None and _is_base64("".join(pem[1].split()))


def _unescaped(key: str) -> str:
    """A private key whose line ends were written as a backslash and an ``n``."""
    return key.replace("\\n", "\n")


# --- Azure -----------------------------------------------------------------------------

_AZURE_NAME = ("AZURE_ACCOUNT_NAME", "azure_account_name", "account_name")
_AZURE_KEY = ("AZURE_ACCOUNT_KEY", "azure_account_key", "account_key")
_AZURE_CONNECTION = ("AZURE_CONNECTION_STRING", "azure_connection_string", "connection_string")

# learn.microsoft.com "Configure Azure Storage connection strings"; names in any case.
_SETTINGS = {
    name.lower(): name
    for name in (
        "AccountKey",
        "AccountName",
        "BlobEndpoint",
        "DefaultEndpointsProtocol",
        "EndpointSuffix",
        "SharedAccessSignature",
        "UseDevelopmentStorage",
        # The portal writes these too; they are not about reading and writing blobs.
        "BlobSecondaryEndpoint",
        "FileEndpoint",
        "FileSecondaryEndpoint",
        "QueueEndpoint",
        "QueueSecondaryEndpoint",
        "TableEndpoint",
        "TableSecondaryEndpoint",
    )
}

# What `UseDevelopmentStorage=true` stands for: the emulator's published account and key.
_DEVELOPMENT_STORAGE = (
    "AccountName=devstoreaccount1;"
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==;"
    "BlobEndpoint=http://127.0.0.1:10000/devstoreaccount1"
)


def _azure(fields: _Fields | None, source: StoreSource) -> AzureCredentials:
    if fields is None:
        return AzureCredentials(
            account_name=source.account,
            blob_endpoint=_account_endpoint(source.account, source),
            ambient=not source.anonymous,
            anonymous=source.anonymous,
        )
    connection = fields.first(*_AZURE_CONNECTION)
    if connection is not None:
        parsed = _connection_string(str(fields.text(connection)))
        if isinstance(parsed, str):
            raise SecretInvalid(f"{fields.where}: `{connection}` {parsed}")
        return parsed
    name = fields.first(*_AZURE_NAME)
    if name is not None:
        fields.check(_is_host_label, name, "is not a storage account's name")
    key = fields.first(*_AZURE_KEY)
    if key is None:
        raise SecretKeyMissing(
            f"{fields.where}: `{_AZURE_KEY[0]}` is missing or empty",
            f"give it, or `{_AZURE_CONNECTION[0]}`",
        )
    fields.check(_is_base64, key, "is not base64")
    account = fields.text(*_AZURE_NAME) or source.account
    return AzureCredentials(
        account_name=account,
        account_key=fields.text(key),
        blob_endpoint=_account_endpoint(account, source),
    )


def _account_endpoint(account: str | None, source: StoreSource) -> str:
    if account is None:
        raise SpecInvalid(f"{source.url}: names no storage account")
    return f"https://{account}.{source.endpoint_suffix or 'blob.core.windows.net'}"


def _connection_string(text: str) -> AzureCredentials | str:
    """What a connection string says, or what is wrong with it, without quoting it."""
    settings = _connection_settings(text)
    if isinstance(settings, str):
        return settings
    if "UseDevelopmentStorage" in settings:
        if len(settings) > 1 or settings["UseDevelopmentStorage"].lower() != "true":
            return "has `UseDevelopmentStorage`, which only stands alone and as `true`"
        return _connection_string(_DEVELOPMENT_STORAGE)
    endpoint = settings.get("BlobEndpoint", "").rstrip("/") or _default_endpoint(settings)
    if endpoint is None:
        return "has neither `AccountName` nor `BlobEndpoint`"
    if not _is_endpoint(endpoint):
        return "does not give a plain http:// or https:// endpoint"
    key = settings.get("AccountKey")
    signature = settings.get("SharedAccessSignature", "").removeprefix("?") or None
    if key is None and signature is None:
        return "has neither `AccountKey` nor `SharedAccessSignature`"
    if key is not None and not _is_base64(key):
        return "has an `AccountKey` that is not base64"
    return AzureCredentials(
        account_name=settings.get("AccountName") or _account_of(endpoint),
        account_key=key,
        connection_string=text,
        sas_token=signature if key is None else None,
        blob_endpoint=endpoint,
    )


def _connection_settings(text: str) -> dict[str, str] | str:
    settings: dict[str, str] = {}
    for number, part in enumerate(text.split(";"), start=1):
        if not part.strip():
            continue  # the portal ends them with `;`
        name, _, value = part.partition("=")
        known = _SETTINGS.get(name.strip().lower())
        if known is None or not value.strip():
            return f"has as part {number} no `Setting=value` of Azure's"
        if known in settings:
            return f"has `{known}` twice"
        settings[known] = value.strip()
    return settings


def _default_endpoint(settings: Mapping[str, str]) -> str | None:
    account = settings.get("AccountName")
    if account is None:
        return None
    protocol = settings.get("DefaultEndpointsProtocol", "https")
    suffix = settings.get("EndpointSuffix", "core.windows.net")
    return f"{protocol}://{account}.blob.{suffix}"


def _account_of(endpoint: str) -> str:
    """The account that a blob endpoint is for: its first label, or its path on an emulator."""
    parts = urlsplit(endpoint)
    return parts.path.strip("/") or str(parts.hostname).partition(".")[0]


def _is_base64(value: object) -> bool:
    try:
        return bool(base64.b64decode(str(value), validate=True))
    except (binascii.Error, ValueError):  # ValueError: not ASCII
        return False


def _is_host_label(value: object) -> bool:
    return re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", str(value)) is not None
