"""The three secret formats: keys, synonyms, tolerated mistakes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.contract.spec import StoreName
from sidecar.mounter.store.azure.credentials import AzureCredentials
from sidecar.mounter.store.credentials import load_credentials
from sidecar.mounter.store.gcs.credentials import GcsCredentials
from sidecar.mounter.store.s3.credentials import S3Credentials
from sidecar.mounter.store.secrets import parse_object
from tests.control.catalogue.samples import AZURE as AZURE_SAMPLE
from tests.control.catalogue.samples import S3_ALL, S3_REQUIRED
from tests.secrets.secrets import AZURE, GCS, PRIVATE_KEY, S3, source, write

BLOB = "blob.core.windows.net"
KEY = "a2V5"
CHINA = "EndpointSuffix=core.chinacloudapi.cn"
SIGNED = "SharedAccessSignature=sv=2022&sig=x%3D"


def s3(root: Path, content: dict[str, object] | str) -> S3Credentials:
    write(root, content)
    credentials = load_credentials(source("s3"), str(root))
    assert isinstance(credentials, S3Credentials)
    return credentials


def azure(root: Path, content: dict[str, object] | str) -> AzureCredentials:
    write(root, content)
    credentials = load_credentials(source("azure"), str(root))
    assert isinstance(credentials, AzureCredentials)
    return credentials


def gcs(root: Path, content: dict[str, object] | str) -> GcsCredentials:
    write(root, content)
    credentials = load_credentials(source("gcs"), str(root))
    assert isinstance(credentials, GcsCredentials)
    return credentials


# --- S3 ------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [S3_REQUIRED, S3_ALL])
def test_the_documents_s3_samples_filled_in(sample: str, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        for colon in (": ", " : "):
            sample = sample.replace(f'"{name}"{colon}""', f'"{name}"{colon}"my-{name}"')
    # An empty value counts as absent.
    assert s3(tmp_path, sample) == S3Credentials(
        access_key_id="my-AWS_ACCESS_KEY_ID", secret_access_key="my-AWS_SECRET_ACCESS_KEY"
    )


def test_every_s3_key(tmp_path: Path) -> None:
    flags = {"AWS_VERIFY_SSL": False, "AWS_USE_SSL": "false"}
    assert s3(tmp_path, {**S3, **flags}) == S3Credentials(
        access_key_id=str(S3["AWS_ACCESS_KEY_ID"]),
        secret_access_key=str(S3["AWS_SECRET_ACCESS_KEY"]),
        session_token=str(S3["AWS_SECURITY_TOKEN"]),
        region=str(S3["AWS_REGION"]),
        endpoint_url=str(S3["AWS_ENDPOINT_URL"]),
        verify_tls=False,
        use_tls=False,
    )


@pytest.mark.parametrize(
    ("key", "field"),
    [
        ("AWS_SESSION_TOKEN", "session_token"),
        ("aws_session_token", "session_token"),
        ("aws_security_token", "session_token"),
        ("session_token", "session_token"),
        ("aws_region", "region"),
        ("region", "region"),
        ("aws_endpoint_url", "endpoint_url"),
        ("endpoint_url", "endpoint_url"),
    ],
)
def test_s3_synonyms(key: str, field: str, tmp_path: Path) -> None:
    got = s3(tmp_path, {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", key: "http://x"})
    assert getattr(got, field) == "http://x"


@pytest.mark.parametrize("form", ["aws_{}", "{}"])
def test_lower_case_and_short_s3_logins(form: str, tmp_path: Path) -> None:
    names = [form.format(name) for name in ("access_key_id", "secret_access_key")]
    assert s3(tmp_path, dict(zip(names, "ab", strict=True))) == S3Credentials("a", "b")


def test_an_empty_usual_name_gives_way_to_a_synonym(tmp_path: Path) -> None:
    content: dict[str, object] = {**S3, "AWS_REGION": " ", "aws_region": None, "region": "r"}
    assert s3(tmp_path, content).region == "r"


def test_white_space_around_values_and_a_byte_order_mark_are_forgiven(tmp_path: Path) -> None:
    text = '\ufeff{"AWS_ACCESS_KEY_ID": "a\\n", "AWS_SECRET_ACCESS_KEY": " b "}'
    assert s3(tmp_path, text) == S3Credentials("a", "b")


# --- Google ----------------------------------------------------------------------------


@pytest.mark.parametrize("key", [PRIVATE_KEY, PRIVATE_KEY.replace("\n", "\\n")])
def test_a_service_account_with_its_line_ends(key: str, tmp_path: Path) -> None:
    account = gcs(tmp_path, {**GCS, "private_key": key}).service_account
    assert account is not None
    assert account["private_key"].strip() == PRIVATE_KEY.strip()
    rest = {name: value for name, value in GCS.items() if name != "private_key"}
    assert {name: value for name, value in account.items() if name != "private_key"} == rest


# --- Azure -----------------------------------------------------------------------------


def test_the_documents_azure_sample_filled_in(tmp_path: Path) -> None:
    # The printed sample has a trailing comma, and an account name with a hyphen.
    sample = AZURE_SAMPLE.replace("your key", KEY)
    assert azure(tmp_path, sample.replace("your connection string", "")) == AzureCredentials(
        account_name="plx-storage",
        account_key=KEY,
        blob_endpoint=f"https://plx-storage.{BLOB}",
    )
    connection = f"AccountName=other;AccountKey={KEY}"
    assert azure(tmp_path, sample.replace("your connection string", connection)) == (
        AzureCredentials(
            account_name="other",
            account_key=KEY,
            connection_string=connection,
            blob_endpoint=f"https://other.{BLOB}",
        )
    )


@pytest.mark.parametrize("form", ["AZURE_{}", "azure_{}", "{}"])
def test_azure_synonyms_and_the_urls_account(form: str, tmp_path: Path) -> None:
    case = str.upper if form.isupper() or form.startswith("AZURE") else str.lower
    expected = AzureCredentials("account", KEY, blob_endpoint=f"https://account.{BLOB}")
    assert azure(tmp_path, {form.format(case("account_key")): KEY}) == expected
    named = {form.format(case("account_key")): KEY, form.format(case("account_name")): "own"}
    assert azure(tmp_path, dict(named)).account_name == "own"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"DefaultEndpointsProtocol=https;AccountName=acc;AccountKey={KEY};{CHINA}",
            ("acc", KEY, None, "https://acc.blob.core.chinacloudapi.cn"),
        ),
        (
            f"AccountName=dev;AccountKey={KEY};BlobEndpoint=http://127.0.0.1:10000/dev;",
            ("dev", KEY, None, "http://127.0.0.1:10000/dev"),
        ),
        (
            f"BlobEndpoint=https://acc.{BLOB}/;QueueEndpoint=https://acc.queue.example/;{SIGNED}",
            ("acc", None, "sv=2022&sig=x%3D", f"https://acc.{BLOB}"),
        ),
        (
            "accountname=acc ; accountkey=a2U=",
            ("acc", "a2U=", None, f"https://acc.{BLOB}"),
        ),
    ],
)
def test_connection_strings(text: str, expected: tuple[str | None, ...], tmp_path: Path) -> None:
    got = azure(tmp_path, {**AZURE, "AZURE_CONNECTION_STRING": text})
    assert (got.account_name, got.account_key, got.sas_token, got.blob_endpoint) == expected
    assert got.connection_string == text


def test_development_storage_is_the_emulator(tmp_path: Path) -> None:
    got = azure(tmp_path, {"AZURE_CONNECTION_STRING": "UseDevelopmentStorage=true"})
    assert got.account_name == "devstoreaccount1"
    assert got.blob_endpoint == "http://127.0.0.1:10000/devstoreaccount1"
    assert "UseDevelopmentStorage" not in str(got.connection_string)


# --- ambient and anonymous ---------------------------------------------------------------


@pytest.mark.parametrize("anonymous", [False, True])
@pytest.mark.parametrize("store", ["s3", "gcs", "azure"])
def test_without_a_secret(store: StoreName, anonymous: bool, tmp_path: Path) -> None:
    got = load_credentials(
        source(store, secret=None, secret_key=None, anonymous=anonymous), str(tmp_path)
    )
    assert (got.ambient, got.anonymous) == (not anonymous, anonymous)
    if isinstance(got, AzureCredentials):
        assert (got.account_name, got.blob_endpoint) == ("account", f"https://account.{BLOB}")


def test_endpoints_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000/")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-1")
    monkeypatch.setenv("AWS_VERIFY_SSL", "0")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    ambient: dict[str, None] = {"secret": None, "secret_key": None}
    assert load_credentials(source("s3", **ambient), str(tmp_path)) == S3Credentials(
        endpoint_url="http://127.0.0.1:9000", region="eu-1", verify_tls=False, ambient=True
    )
    assert load_credentials(source("gcs", **ambient), str(tmp_path)) == GcsCredentials(
        endpoint_url="http://127.0.0.1:4443", ambient=True
    )
    # A secret's endpoint wins over the environment's.
    assert s3(tmp_path, S3).endpoint_url == S3["AWS_ENDPOINT_URL"]
    own = s3(tmp_path, {"access_key_id": "a", "secret_access_key": "b"})
    assert (own.endpoint_url, own.region, own.verify_tls) == ("http://127.0.0.1:9000", None, True)
    assert gcs(tmp_path, GCS).endpoint_url == "http://127.0.0.1:4443"


# --- the reader --------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from(',}]{[" \\\nx')),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(st.dictionaries(st.text(max_size=3), values, max_size=3), st.sampled_from([None, 1]))
def test_json_is_read_as_it_is_and_with_trailing_commas(
    value: dict[str, object], indent: int | None
) -> None:
    text = json.dumps(value, indent=indent)
    assert parse_object(text.encode()) == value
    if value:
        assert parse_object(f"{text[:-1]} , }}".encode()) == value
    assert parse_object(f'{{"a": [{text},\n]}}'.encode()) == {"a": [value]}


@pytest.mark.parametrize("text", ["{,}", '{"a": [,]}', '{"a": 1,,}', '{"a": 1,} x', '{"a", }'])
def test_other_commas_are_not_forgiven(text: str) -> None:
    assert str(parse_object(text.encode())).startswith("not JSON (line 1, column ")


def test_a_position_is_that_of_the_file() -> None:
    assert parse_object(b'{"a": [1,],\n "b": ?}') == "not JSON (line 2, column 7)"
