"""Errors of wrong secrets name the file and the key, and nowhere contain the value."""

import pickle
import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from sidecar.contract.spec import StoreName, StoreSource
from sidecar.errors import (
    CredentialError,
    SecretFileMissing,
    SecretIncomplete,
    SecretInvalid,
    SecretKeyMissing,
    SecretNotJson,
    SidecarError,
    SpecInvalid,
)
from sidecar.mounter.store.credentials import VolumeCredentials, load_credentials
from tests.secrets.secrets import CANARY, PRIVATE_KEY, SECRETS, source, write

CONNECTION = "AZURE_CONNECTION_STRING"
Change = Mapping[str, object] | str | bytes


def loading_error(volume: StoreSource, root: str) -> SidecarError:
    """The error of loading; in a function of its own, so that its frame has no secret value."""
    with pytest.raises(SidecarError) as caught:
        load_credentials(volume, root)
    return caught.value


def all_that_an_error_tells(error: SidecarError) -> str:
    """Its texts, its pickle, and its traceback with every frame's variables."""
    assert error.__context__ is None
    assert error.__cause__ is None
    trace = traceback.TracebackException.from_exception(error, capture_locals=True)
    pickled = pickle.dumps(error).decode("latin-1")
    return "\n".join([str(error), repr(error), error.line(), pickled, *trace.format()])


WRONG: list[tuple[StoreName, Change, type[CredentialError], str]] = [
    # Not a JSON object.
    ("s3", f'{{"AWS_ACCESS_KEY_ID": "{CANARY}" x}}', SecretNotJson, "not JSON (line 1, column 38)"),
    ("gcs", CANARY, SecretNotJson, "not JSON (line 1, column 1)"),
    ("s3", f'"{CANARY}"', SecretNotJson, "not a JSON object"),
    ("s3", f'["{CANARY}"]', SecretNotJson, "not a JSON object"),
    ("s3", "", SecretNotJson, "not JSON (line 1, column 1)"),
    ("s3", CANARY.encode("utf-16"), SecretNotJson, "not UTF-8"),
    ("s3", f'{{"{CANARY}": ' + "[" * 100_000, SecretNotJson, "not JSON"),
    ("s3", f'{{"{CANARY}": ' + "1" * 5000 + "}", SecretNotJson, "not JSON"),
    # S3.
    (
        "s3",
        {"AWS_ACCESS_KEY_ID": None},
        SecretKeyMissing,
        "`AWS_ACCESS_KEY_ID` is missing or empty",
    ),
    ("s3", {"AWS_ACCESS_KEY_ID": ""}, SecretKeyMissing, "`AWS_ACCESS_KEY_ID` is missing or empty"),
    ("s3", {"AWS_SECRET_ACCESS_KEY": " "}, SecretKeyMissing, "`AWS_SECRET_ACCESS_KEY` is missing"),
    (
        "s3",
        {"AWS_SECRET_ACCESS_KEY": [CANARY]},
        SecretInvalid,
        "`AWS_SECRET_ACCESS_KEY` is not one",
    ),
    (
        "s3",
        {"AWS_SECRET_ACCESS_KEY": f"{CANARY}\nx"},
        SecretInvalid,
        "`AWS_SECRET_ACCESS_KEY` is not",
    ),
    (
        "s3",
        {"AWS_ACCESS_KEY_ID": f"{CANARY}é"},
        SecretInvalid,
        "`AWS_ACCESS_KEY_ID` is not one line",
    ),
    ("s3", {"AWS_REGION": 1}, SecretInvalid, "`AWS_REGION` is not one line of ASCII text"),
    ("s3", {"AWS_VERIFY_SSL": CANARY}, SecretInvalid, "`AWS_VERIFY_SSL` is neither true nor false"),
    ("s3", {"AWS_USE_SSL": {CANARY: 1}}, SecretInvalid, "`AWS_USE_SSL` is neither true nor false"),
    (
        "s3",
        {"AWS_ENDPOINT_URL": f"{CANARY}:9000"},
        SecretInvalid,
        "`AWS_ENDPOINT_URL` is not a plain",
    ),
    (
        "s3",
        {"AWS_ENDPOINT_URL": f"http://u:{CANARY}@h"},
        SecretInvalid,
        "`AWS_ENDPOINT_URL` is not a",
    ),
    (
        "s3",
        {"AWS_ENDPOINT_URL": f"http://h:{CANARY}"},
        SecretInvalid,
        "`AWS_ENDPOINT_URL` is not a",
    ),
    ("s3", {"AWS_ENDPOINT_URL": f"http://[{CANARY}"}, SecretInvalid, "`AWS_ENDPOINT_URL` is not a"),
    # Google.
    ("gcs", {"type": None}, SecretKeyMissing, "`type` is missing or empty"),
    ("gcs", {"type": CANARY}, SecretInvalid, "`type` is not `service_account`"),
    ("gcs", {"client_email": ""}, SecretKeyMissing, "`client_email` is missing or empty"),
    ("gcs", {"private_key": None}, SecretKeyMissing, "`private_key` is missing or empty"),
    (
        "gcs",
        {"private_key": CANARY},
        SecretInvalid,
        "`private_key` is not a private key in PEM form",
    ),
    (
        "gcs",
        {"private_key": PRIVATE_KEY[:-30]},
        SecretInvalid,
        "`private_key` is not a private key",
    ),
    ("gcs", {"private_key": [PRIVATE_KEY]}, SecretInvalid, "`private_key` is not a private key"),
    ("gcs", {"token_uri": ""}, SecretKeyMissing, "`token_uri` is missing or empty"),
    (
        "gcs",
        {"token_uri": f"file:///{CANARY}"},
        SecretInvalid,
        "`token_uri` is not a plain http://",
    ),
    # Azure.
    (
        "azure",
        {"AZURE_ACCOUNT_KEY": ""},
        SecretKeyMissing,
        "`AZURE_ACCOUNT_KEY` is missing or empty",
    ),
    (
        "azure",
        {"AZURE_ACCOUNT_KEY": f"{CANARY} "[1:]},
        SecretInvalid,
        "`AZURE_ACCOUNT_KEY` is not base64",
    ),
    (
        "azure",
        {"AZURE_ACCOUNT_NAME": f"{CANARY}.evil/"},
        SecretInvalid,
        "`AZURE_ACCOUNT_NAME` is not",
    ),
    (
        "azure",
        {CONNECTION: CANARY},
        SecretInvalid,
        f"`{CONNECTION}` has as part 1 no `Setting=value`",
    ),
    ("azure", {CONNECTION: f"{CANARY}=x"}, SecretInvalid, f"`{CONNECTION}` has as part 1 no"),
    (
        "azure",
        {CONNECTION: f"AccountKey={CANARY};AccountName="},
        SecretInvalid,
        f"`{CONNECTION}` has as part 2",
    ),
    (
        "azure",
        {CONNECTION: f"AccountKey={CANARY};AccountKey={CANARY}"},
        SecretInvalid,
        f"`{CONNECTION}` has `AccountKey` twice",
    ),
    (
        "azure",
        {CONNECTION: f"AccountKey={CANARY}"},
        SecretInvalid,
        f"`{CONNECTION}` has neither `AccountName` nor `BlobEndpoint`",
    ),
    (
        "azure",
        {CONNECTION: f"AccountName={CANARY}"},
        SecretInvalid,
        f"`{CONNECTION}` has neither `AccountKey` nor",
    ),
    (
        "azure",
        {CONNECTION: f"AccountName=a;AccountKey={CANARY}x"},
        SecretInvalid,
        f"`{CONNECTION}` has an `AccountKey` that is",
    ),
    (
        "azure",
        {CONNECTION: f"BlobEndpoint={CANARY};AccountKey={CANARY}"},
        SecretInvalid,
        f"`{CONNECTION}` does not give a plain",
    ),
    (
        "azure",
        {CONNECTION: f"UseDevelopmentStorage={CANARY}"},
        SecretInvalid,
        f"`{CONNECTION}` has `UseDevelopmentStorage`",
    ),
    (
        "azure",
        {CONNECTION: [CANARY]},
        SecretInvalid,
        f"`{CONNECTION}` is not one line of ASCII text",
    ),
]


@pytest.mark.parametrize("case", WRONG, ids=lambda case: f"{case[0]}: {case[3]}")
def test_wrong_secret(
    case: tuple[StoreName, Change, type[CredentialError], str], tmp_path: Path
) -> None:
    store, change, expected, problem = case
    write(tmp_path, change if isinstance(change, str | bytes) else {**SECRETS[store], **change})
    error = loading_error(source(store), str(tmp_path))
    assert type(error) is expected
    assert error.exit_status == 3
    assert error.message.startswith(f"secret file {tmp_path}/login/key.json: {problem}")
    assert CANARY[1:] not in all_that_an_error_tells(error)


def test_missing_secret_file(tmp_path: Path) -> None:
    error = loading_error(source("s3"), str(tmp_path))
    assert type(error) is SecretFileMissing
    assert error.line() == (
        f"error SC1030 SECRET_FILE_MISSING: secret file {tmp_path}/login/key.json: "
        "no such file or directory; "
        "`kubectl create secret generic login --from-file=key.json=FILE` "
        "in the pod's namespace, or select other volumes"
    )
    (tmp_path / "login" / "key.json").mkdir(parents=True)
    assert "is a directory" in loading_error(source("s3"), str(tmp_path)).message


def test_half_a_secret_is_never_ambient_identity(tmp_path: Path) -> None:
    assert type(loading_error(source("s3", secret=None), str(tmp_path))) is SecretIncomplete
    assert type(loading_error(source("s3", secret_key=None), str(tmp_path))) is SecretIncomplete


def test_azure_needs_an_account(tmp_path: Path) -> None:
    volume = source("azure", account=None, secret=None, secret_key=None)
    assert type(loading_error(volume, str(tmp_path))) is SpecInvalid


def test_wrong_environment_is_named_without_its_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://u:{CANARY}@h")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    error = loading_error(source("s3", secret=None, secret_key=None), str(tmp_path))
    assert error.message.startswith("the environment: `AWS_ENDPOINT_URL` is not a plain")
    assert CANARY not in all_that_an_error_tells(error)


@pytest.mark.parametrize("store", ["s3", "gcs", "azure"])
def test_no_value_in_any_repr(store: StoreName, tmp_path: Path) -> None:
    content = dict(SECRETS[store])
    if store == "azure":
        content[CONNECTION] = f"AccountName={CANARY};AccountKey={CANARY}"
    write(tmp_path, content)
    credentials = VolumeCredentials(source(store), str(tmp_path))
    current = credentials.current()
    shown = f"{current} {current!r} {credentials} {credentials!r} {[current]} {vars(credentials)}"
    assert CANARY not in shown
    assert "ambient=False" in shown
