"""Catalogues: the document's sample as printed, and a typed error for each wrong entry."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.contract.spec import ClaimSource, HostPathSource, StoreSource
from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.errors import (
    BucketMissing,
    BucketUrlInvalid,
    CatalogueInvalid,
    ConfigError,
    MountPathInvalid,
    SchemeMismatch,
    SecretIncomplete,
    SidecarError,
    SourceConflict,
    SourceMissing,
    UnknownKey,
)
from tests.control.catalogue.samples import CATALOGUE


def test_the_documents_sample_as_printed() -> None:
    catalogue = parse_catalogue(CATALOGUE, "values.yaml")
    assert [volume.name for volume in catalogue.data] == [
        "data1",
        "data2",
        "data-foo",
        "data-gcs3",
        "data-s3",
        "data-azure",
    ]
    assert [volume.name for volume in catalogue.outputs] == [
        "outputs1",
        "outputs2",
        "outputs-foo",
        "outputs-gcs3",
        "outputs-s3",
        "outputs-azure",
    ]
    host, claim, _, gcs, s3, azure = catalogue.data
    assert (host.mount_path, host.read_only) == ("/data/1", True)
    assert host.source == HostPathSource(host_path="/path/to/data")
    assert (claim.mount_path, claim.read_only) == ("/data/2", False)
    assert claim.source == ClaimSource(claim="data-2-pvc")
    assert gcs.source == StoreSource(
        store="gcs",
        url="gs://data-bucket",
        bucket="data-bucket",
        secret="secret-name",
        secret_key="secret-key",
    )
    assert s3.source == StoreSource(
        store="s3",
        url="s3://data-bucket",
        bucket="data-bucket",
        secret="secret-name",
        secret_key="secret-key",
    )
    assert azure.source == StoreSource(
        store="azure",
        url="wasbs://data-container@account.blob.core.windows.net/",
        bucket="data-container",
        account="account",
        endpoint_suffix="blob.core.windows.net",
        secret="secret-name",
        secret_key="secret-key",
    )
    assert gcs.mount_path is None


def test_bare_mapping_and_json_are_the_same_catalogue() -> None:
    section = yaml.safe_load(CATALOGUE)["persistence"]
    expected = parse_catalogue(CATALOGUE, "f")
    assert parse_catalogue(json.dumps(section), "f") == expected
    assert parse_catalogue(json.dumps({"persistence": section}, indent="\t"), "f") == expected
    assert parse_catalogue(yaml.safe_dump(section, sort_keys=False), "f") == expected


@pytest.mark.parametrize(
    "text",
    [
        "persistence:",
        "persistence: {data: null, outputs: {}}",
        "rbac: {enabled: true}\npersistence: {logs: {mountPath: /logs}, repos: {}, upload: {}}",
        "data:",
    ],
)
def test_no_volumes(text: str) -> None:
    assert parse_catalogue(text, "f") == Catalogue()


def test_null_is_absent() -> None:
    text = "data: {d: {mountPath: /d, hostPath: /h, existingClaim: null, readOnly: ~, store: }}"
    assert parse_catalogue(text, "f").data[0].source == HostPathSource(host_path="/h")


def test_a_bucket_may_have_a_mount_path_and_be_anonymous() -> None:
    text = "data: {d: {store: s3, bucket: 's3://bucket/p', mountPath: /d, anonymous: true}}"
    (volume,) = parse_catalogue(text, "f").data
    assert volume.mount_path == "/d"
    assert isinstance(volume.source, StoreSource)
    assert volume.source.anonymous
    assert volume.source.prefix == "p/"


HOST = "mountPath: /d, hostPath: /h"
S3 = "store: s3, bucket: 's3://bucket'"


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        (
            "store: s3, bukcet: 's3://b'",
            UnknownKey,
            "unknown key `data.d.bukcet` (did you mean `bucket`?)",
        ),
        (
            f"{HOST}, readonly: true",
            UnknownKey,
            "unknown key `data.d.readonly` (did you mean `readOnly`?)",
        ),
        (
            f"{HOST}, mount_path: /x",
            UnknownKey,
            "unknown key `data.d.mount_path` (did you mean `mountPath`?)",
        ),
        (
            f"{HOST}, readOnly: 'true'",
            CatalogueInvalid,
            "`data.d.readOnly`: input should be a valid boolean",
        ),
        (
            "mountPath: 5, hostPath: /h",
            CatalogueInvalid,
            "`data.d.mountPath`: input should be a valid string",
        ),
        (
            "store: minio, bucket: 's3://b'",
            CatalogueInvalid,
            "`data.d.store`: input should be 's3', 'gcs' or 'azure'",
        ),
        (
            f"{HOST}, existingClaim: c",
            SourceConflict,
            "`data.d`: has `hostPath` and `existingClaim`; keep one of `hostPath`, `existing",
        ),
        (f"{HOST}, {S3}", SourceConflict, "`data.d`: has `hostPath` and `store`; keep"),
        (
            "mountPath: /d",
            SourceMissing,
            "`data.d`: says nowhere what to mount; add one of `hostPath`,",
        ),
        ("bucket: 's3://b'", SourceMissing, "`data.d`: says nowhere what to mount; add"),
        (
            "store: s3",
            BucketMissing,
            "`data.d`: has `store` without `bucket`; add the bucket's URL",
        ),
        (
            "store: s3, bucket: 'gs://b'",
            SchemeMismatch,
            "`data.d.bucket`: `gs://` does not belong to `store: s3`; write it as",
        ),
        ("store: s3, bucket: 's3://'", BucketUrlInvalid, "`data.d.bucket`: `` cannot be"),
        (
            f"{S3}, secret: s",
            SecretIncomplete,
            "`data.d`: has `secret` without `secretKey`; give both, or",
        ),
        (
            f"{S3}, secretKey: k",
            SecretIncomplete,
            "`data.d`: has `secretKey` without `secret`; give",
        ),
        (f"{S3}, secret: s, secretKey: k, anonymous: true", SecretIncomplete, "`data.d`: has both"),
        (
            f"{S3}, secret: ../s, secretKey: k",
            CatalogueInvalid,
            "`data.d.secret`: cannot be a secret's name",
        ),
        (
            f"{S3}, secret: s, secretKey: ../k",
            CatalogueInvalid,
            "`data.d.secretKey`: cannot be a key of",
        ),
        (
            f"{S3}, secret: s, secretKey: ..",
            CatalogueInvalid,
            "`data.d.secretKey`: cannot be a key of",
        ),
        (
            f"{HOST}, secret: s",
            CatalogueInvalid,
            "`data.d.secret`: belongs to `store`, not to `hostPath`",
        ),
        (f"{HOST}, anonymous: true", CatalogueInvalid, "`data.d.anonymous`: belongs to"),
        ("hostPath: /h", MountPathInvalid, "`data.d`: lacks `mountPath`; `hostPath` needs one"),
        (
            "existingClaim: c",
            MountPathInvalid,
            "`data.d`: lacks `mountPath`; `existingClaim` needs",
        ),
        ("mountPath: d, hostPath: /h", MountPathInvalid, "`data.d.mountPath`: `d` is not absolute"),
        ("mountPath: /, hostPath: /h", MountPathInvalid, "`data.d.mountPath`: `/` cannot be used"),
        (
            "mountPath: /d/, hostPath: /h",
            MountPathInvalid,
            "`data.d.mountPath`: `/d/` has a part that is empty",
        ),
        (
            "mountPath: /d/../e, hostPath: /h",
            MountPathInvalid,
            "`data.d.mountPath`: `/d/../e` has a part that is `..`",
        ),
        (
            'mountPath: "/d\\0", hostPath: /h',
            MountPathInvalid,
            "`data.d.mountPath`: `/d\\x00` has a part",
        ),
        (
            "mountPath: /d, hostPath: /h/..",
            CatalogueInvalid,
            "`data.d.hostPath`: `/h/..` has a part",
        ),
        (
            "mountPath: /d, existingClaim: Claim_1",
            CatalogueInvalid,
            "`data.d.existingClaim`: cannot be a claim's name",
        ),
    ],
)
def test_wrong_entry(entry: str, error: type[ConfigError], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_catalogue(f"data: {{d: {{{entry}}}}}", "f")
    assert caught.value.message.startswith(f"f: {message}")
    assert type(caught.value) is error
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("", CatalogueInvalid, "holds nothing where one document belongs"),
        ("a: 1\n---\nb: 1", CatalogueInvalid, "holds 2 documents"),
        ("{}", CatalogueInvalid, "is empty"),
        ("[]", CatalogueInvalid, "must be a mapping"),
        ("persistence: [x]", CatalogueInvalid, "`persistence`: must be a mapping"),
        ("data: [x]", CatalogueInvalid, "`data`: must be a mapping"),
        ("data: {d: }", CatalogueInvalid, "`data.d`: must be a mapping"),
        ("dta: {}", UnknownKey, "unknown key `dta` (did you mean `data`?)"),
        ("persistance: {}", UnknownKey, "unknown key `persistance` (did you mean `persistence`?)"),
        (
            "persistence: {output: {}}",
            UnknownKey,
            "unknown key `persistence.output` (did you mean `outputs`?)",
        ),
        ("data:\n  d: {}\n  e: {}\n  d: {}", CatalogueInvalid, "line 4: the key `d` appears twice"),
        (
            "data: {'': {}}",
            CatalogueInvalid,
            "`data.`: a volume's name has at most 63 of",
        ),
        (
            "data: {..: {}}",
            CatalogueInvalid,
            "`data...`: a volume's name has at most 63 of",
        ),
        (
            "data: {a/b: {}}",
            CatalogueInvalid,
            "`data.a/b`: a volume's name has at most 63 of",
        ),
        (
            "data: {Bad_Name!: {}}",
            CatalogueInvalid,
            "`data.Bad_Name!`: a volume's name has at most 63 of",
        ),
        ("data: {" + "n" * 256 + ": {}}", CatalogueInvalid, "`data.nnn"),
    ],
)
def test_wrong_document(text: str, error: type[ConfigError], message: str) -> None:
    with pytest.raises(error) as caught:
        parse_catalogue(text, "f")
    assert caught.value.message.startswith(f"f: {message}")


@pytest.mark.parametrize(
    ("name", "better"), [("Bad_Name!", "`bad-name`"), ("-", "otherwise"), ("n" * 64, "n" * 63)]
)
def test_a_name_that_is_no_label_gets_a_suggestion(name: str, better: str) -> None:
    with pytest.raises(CatalogueInvalid) as caught:
        parse_catalogue(f"data: {{'{name}': {{}}}}", "f")
    assert better in (caught.value.hint or "")


# Nearly valid values, so that the search gets past the first check.
words = ["/d", "d", "", "s3", "gcs", "azure", "s3://bucket/p", "gs://bucket", "name", ".."]
scalars = st.sampled_from([*words, True, None, 1]) | st.text(max_size=5)
entry_keys = ["mountPath", "hostPath", "existingClaim", "store", "bucket", "secret", "secretKey"]
keys = st.sampled_from([*entry_keys, "readOnly", "anonymous", "x"])
entries = st.dictionaries(keys, scalars, max_size=6) | scalars
sections = st.dictionaries(
    st.sampled_from(["data", "outputs", "logs"]) | st.text(max_size=4),
    st.dictionaries(st.text(max_size=4), entries, max_size=3) | scalars,
)
catalogues = sections | st.builds(lambda section: {"persistence": section}, sections) | scalars


def outcome(text: str) -> Catalogue | SidecarError:
    try:
        return parse_catalogue(text, "f")
    except SidecarError as error:
        return error


@settings(deadline=None)
@given(catalogues)
def test_any_document_parses_or_is_a_typed_error(document: object) -> None:
    from_json = outcome(json.dumps(document))
    from_yaml = outcome(yaml.safe_dump(document, sort_keys=False))
    if isinstance(from_json, SidecarError):
        assert from_json.exit_status == 2
        assert from_json.line().startswith("error SC10")
        assert from_json.line().isprintable()
        assert type(from_yaml) is type(from_json)
    else:
        assert from_yaml == from_json


@settings(deadline=None)
@given(st.text())
def test_any_text_parses_or_is_a_typed_error(text: str) -> None:
    got = outcome(text)
    assert isinstance(got, Catalogue) or got.line().isprintable()
