"""Resolution: which volumes a run gets, and where; and its errors."""

import json

import pytest

from sidecar.contract.spec import PersistenceSpec, Roots
from sidecar.contract.spec_document import load_spec
from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.control.catalogue.resolve import Paths, resolve
from sidecar.control.catalogue.selection import Selection, parse_polyaxonfile
from sidecar.errors import (
    ConfigError,
    DuplicateSelection,
    MountPathInvalid,
    OutputsMissing,
    OutputsReadOnly,
    PathOverlap,
    RunPathInvalid,
    SelectionInvalid,
    UnknownKey,
    VolumeUnknown,
)
from tests.control.catalogue.samples import CATALOGUE, SELECT_DATA, SELECT_OUTPUTS

RUN = "user/project/experiments/1"


def run_of(
    catalogue: str, polyaxonfile: str = "", run: str = "", paths: Paths = "local"
) -> PersistenceSpec:
    return resolve(
        parse_catalogue(catalogue, "values.yaml"),
        parse_polyaxonfile(polyaxonfile, "polyaxonfile.yml"),
        run=run,
        paths=paths,
    )


def data_paths(spec: PersistenceSpec) -> dict[str, str]:
    paths = json.loads(spec.environment["POLYAXON_RUN_DATA_PATHS"])
    assert isinstance(paths, dict)
    return paths


def test_the_documents_sample_without_a_polyaxonfile() -> None:
    spec = run_of(CATALOGUE, run=RUN)
    assert data_paths(spec) == {
        "data1": "/data/1",
        "data2": "/data/2",
        "data-foo": "/data/foo",
        "data-gcs3": "/mnt/persistence/data/data-gcs3",
        "data-s3": "/mnt/persistence/data/data-s3",
        "data-azure": "/mnt/persistence/data/data-azure",
    }
    # outputs1 is declared first, but it is read-only.
    assert spec.volumes[-1].name == "outputs2"
    assert spec.outputs_path == f"/outputs/2/{RUN}"
    assert spec.environment["POLYAXON_RUN_OUTPUTS_PATH"] == f"/outputs/2/{RUN}"
    assert {volume.name: volume.mountpoint for volume in spec.volumes if volume.is_bucket} == {
        "data-gcs3": "/mnt/persistence/data/data-gcs3",
        "data-s3": "/mnt/persistence/data/data-s3",
        "data-azure": "/mnt/persistence/data/data-azure",
    }
    assert load_spec(spec.to_json(), "printed") == spec


def test_the_documents_selections() -> None:
    assert list(data_paths(run_of(CATALOGUE, SELECT_DATA))) == ["data1", "data-foo"]
    assert run_of(CATALOGUE, SELECT_OUTPUTS).volumes[-1].name == "outputs-foo"


@pytest.mark.parametrize(
    ("polyaxonfile", "names"),
    [
        ("", ["a", "b", "c"]),
        ("environment:", ["a", "b", "c"]),
        ("environment: {persistence: }", ["a", "b", "c"]),
        ("environment: {persistence: {data: }}", ["a", "b", "c"]),
        ("environment: {persistence: {data: []}}", []),
        ("environment: {persistence: {data: [c, a]}}", ["c", "a"]),
        (
            "kind: experiment\nrun: {cmd: x}\n---\nenvironment: {persistence: {data: [b]}}",
            ["b"],
        ),
        (
            "version: 1\nhptuning: {matrix: {lr: {values: [0.1]}}}\nrun: {cmd: 'x {{ lr }}'}",
            ["a", "b", "c"],
        ),
    ],
)
def test_data(polyaxonfile: str, names: list[str]) -> None:
    catalogue = "\n".join(
        ["data:", *(f"  {name}: {{mountPath: /{name}, existingClaim: one}}" for name in "abc")]
    )
    spec = run_of(catalogue, polyaxonfile)
    assert data_paths(spec) == {name: f"/{name}" for name in names}
    assert [volume.name for volume in spec.volumes] == names


def test_a_catalogue_without_outputs_gives_a_run_without_them() -> None:
    spec = run_of("data: {}", run=RUN)
    assert spec.outputs_path is None
    assert spec.environment == {"POLYAXON_RUN_DATA_PATHS": "{}"}


def test_data_and_outputs_are_separate_names() -> None:
    s3 = "{v: {store: s3, bucket: 's3://bucket'}}"
    spec = run_of(f"{{data: {s3}, outputs: {s3}}}")
    assert [volume.path for volume in spec.volumes] == [
        "/mnt/persistence/data/v",
        "/mnt/persistence/outputs/v",
    ]


def test_a_bucket_with_a_mount_path_is_there() -> None:
    (volume,) = run_of("data: {v: {store: s3, bucket: 's3://bucket', mountPath: /v}}").volumes
    assert (volume.path, volume.mountpoint) == ("/v", "/v")


def test_urls_instead_of_paths() -> None:
    spec = run_of(CATALOGUE, "environment: {persistence: {outputs: outputs-azure}}", RUN, "urls")
    assert data_paths(spec) == {
        "data1": "/data/1",
        "data2": "/data/2",
        "data-foo": "/data/foo",
        "data-gcs3": "gs://data-bucket",
        "data-s3": "s3://data-bucket",
        "data-azure": "wasbs://data-container@account.blob.core.windows.net",
    }
    assert spec.environment["POLYAXON_RUN_OUTPUTS_PATH"] == (
        f"wasbs://outputs-container@account.blob.core.windows.net/{RUN}"
    )
    assert spec.outputs_path == f"/mnt/persistence/outputs/outputs-azure/{RUN}"


def test_roots_can_be_set() -> None:
    catalogue = parse_catalogue("data: {v: {store: s3, bucket: 's3://bucket'}}", "f")
    spec = resolve(catalogue, Selection(), roots=Roots(shared="/tmp/shared"))
    assert data_paths(spec) == {"v": "/tmp/shared/data/v"}
    with pytest.raises(MountPathInvalid, match=r"roots.shared: `shared` is not absolute"):
        resolve(catalogue, Selection(), roots=Roots(shared="shared"))


AT = "polyaxonfile.yml: environment.persistence"
DATA = "the catalogue declares: data1, data2, data-foo, data-gcs3, data-s3, data-azure"
WRITABLE = "writable are: outputs2, outputs-foo, outputs-gcs3, outputs-s3, outputs-azure"
OUTPUTS = WRITABLE.replace("writable are:", "the catalogue declares: outputs1,")


@pytest.mark.parametrize(
    ("persistence", "error", "message"),
    [
        (
            "data: [data1, data-s4]",
            VolumeUnknown,
            f"{AT}.data[1]: no data volume is named `data-s4` (did you mean `data-s3`?); {DATA}",
        ),
        (
            "outputs: data1",
            VolumeUnknown,
            f"{AT}.outputs: no outputs volume is named `data1`; {OUTPUTS}",
        ),
        (
            "data: [data1, data2, data1]",
            DuplicateSelection,
            f"{AT}.data[2]: `data1` is already in the list; name it once",
        ),
        (
            "outputs: outputs1",
            OutputsReadOnly,
            f"{AT}.outputs: `outputs1` is read-only in the catalogue; {WRITABLE}",
        ),
        (
            "outputs: [outputs2]",
            SelectionInvalid,
            f"{AT}.outputs: is a list, but a run has one outputs volume; write `outputs: 'NAME'`",
        ),
        (
            "data: data1",
            SelectionInvalid,
            f"{AT}.data: must be a list of names; write `data: ['NAME']`",
        ),
        (
            "data: [1]",
            SelectionInvalid,
            f"{AT}.data[0]: must be a volume's name; a string, in quotes if need be",
        ),
        ("dta: []", UnknownKey, f"unknown key `dta` in {AT} (did you mean `data`?)"),
    ],
)
def test_wrong_selection(persistence: str, error: type[ConfigError], message: str) -> None:
    with pytest.raises(error) as caught:
        run_of(CATALOGUE, f"environment: {{persistence: {{{persistence}}}}}")
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "polyaxonfile.yml: must be a mapping"),
        ("environment: []", "polyaxonfile.yml: `environment` must be a mapping"),
        (
            "environment: {persistence: x}",
            "polyaxonfile.yml: `environment.persistence` must be a mapping",
        ),
        (
            "persistence: {}",
            "polyaxonfile.yml: `persistence` is at the top; put it under `environment:`",
        ),
        ("a: {", "polyaxonfile.yml: line 1: not valid YAML: expected the node content"),
        (
            "environment: {persistence: {}}\n---\nenvironment: {persistence: {}}",
            "polyaxonfile.yml: 2 documents",
        ),
    ],
)
def test_wrong_polyaxonfile(text: str, message: str) -> None:
    with pytest.raises(SelectionInvalid) as caught:
        parse_polyaxonfile(text, "polyaxonfile.yml")
    assert caught.value.message.startswith(message)


def test_no_writable_outputs() -> None:
    catalogue = "outputs: {o: {hostPath: /h, mountPath: /o, readOnly: true}}"
    with pytest.raises(OutputsMissing) as caught:
        run_of(catalogue)
    assert caught.value.message == (
        "every outputs volume is read-only: o; declare one without `readOnly: true`"
    )


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        ("/x", "/x", True),
        ("/x", "/x/y", True),
        ("/x/y", "/x", True),
        ("/x", "/xy", False),
        ("/x/a", "/x/b", False),
        ("/x", "/mnt/persistence", True),
        ("/x", "/mnt", True),
        ("/x", "/mnt/persistence/data/other", True),
        ("/x", "/mnt/persistence/data/b", True),  # A claim where only buckets may be.
        ("/x", "/var/run/sidecar/secrets/s", True),
        ("/x", "/etc/sidecar", True),
        ("/x", "/dev", True),
        ("/x", "/mnt/data", False),
    ],
)
def test_overlapping_paths(a: str, b: str, overlap: bool) -> None:
    entry = "{{existingClaim: c, mountPath: {}}}"
    entries = [f"  a: {entry.format(a)}", f"  b: {entry.format(b)}"]
    catalogue = parse_catalogue("\n".join(["data:", *entries]), "f")
    if overlap:
        with pytest.raises(PathOverlap):
            resolve(catalogue, Selection())
    else:
        resolve(catalogue, Selection())
    resolve(catalogue, Selection(data=("a",)))  # Only selected volumes can overlap.


def test_overlap_between_data_and_outputs_is_named() -> None:
    entry = "{v: {existingClaim: c, mountPath: /v}}"
    with pytest.raises(PathOverlap) as caught:
        run_of(f"{{data: {entry}, outputs: {entry}}}")
    assert caught.value.message == (
        "data volume `v` at `/v` and outputs volume `v` at `/v` overlap; "
        "select one of them, or change a `mountPath` in the catalogue"
    )


@pytest.mark.parametrize(
    "run", ["/a", "a/", "a//b", "../a", "a/../b", ".", "a\0", "x" * 256, "a\nb"]
)
def test_wrong_run_path(run: str) -> None:
    with pytest.raises(RunPathInvalid, match=r"^the run's path: "):
        resolve(Catalogue(), Selection(), run=run)
