"""`sidecar resolve` as a process: exit status, and one line for an error."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.contract.spec_document import load_spec
from tests.control.catalogue.samples import CATALOGUE, SELECT_DATA

SIDECAR = [sys.executable, "-m", "sidecar"]


def sidecar(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SIDECAR, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The document's sample in a file of the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("values.yaml").write_text(CATALOGUE)
    return "values.yaml"


def test_prints_the_spec(values: str) -> None:
    Path("polyaxonfile.yml").write_text(SELECT_DATA)
    done = sidecar(
        "resolve", "--catalogue", values, "--polyaxonfile", "polyaxonfile.yml", "--run", "u/p/1"
    )
    assert (done.returncode, done.stderr) == (0, "")
    spec = load_spec(done.stdout, "stdout")
    assert [volume.name for volume in spec.volumes] == ["data1", "data-foo", "outputs2"]
    assert spec.environment == {
        "POLYAXON_RUN_DATA_PATHS": '{"data1": "/data/1", "data-foo": "/data/foo"}',
        "POLYAXON_RUN_OUTPUTS_PATH": "/outputs/2/u/p/1",
    }


def test_reads_standard_input_and_takes_options() -> None:
    done = sidecar(
        "resolve", "--catalogue", "-", "--paths", "urls",
        "--shared-root", "/r/shared", "--secrets-root", "/r/secrets", "--state-root", "/r/state",
        stdin=CATALOGUE,
    )  # fmt: skip
    spec = json.loads(done.stdout)
    assert (
        json.loads(spec["environment"]["POLYAXON_RUN_DATA_PATHS"])["data-s3"] == "s3://data-bucket"
    )
    roots = spec["roots"]
    assert (roots["shared"], roots["secrets"], roots["state"]) == (
        "/r/shared", "/r/secrets", "/r/state",
    )  # fmt: skip


def test_who_the_program_runs_as_owns_what_is_in_buckets(values: str) -> None:
    done = sidecar("resolve", "--catalogue", values, "--user", "1000:2000")
    access = load_spec(done.stdout, "stdout").access
    assert (access.uid, access.gid) == (1000, 2000)


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ("1000", "`1000` is not UID:GID, such as 1000:1000"),
        ("me:me", "`me:me` is not UID:GID, such as 1000:1000"),
        ("-1:0", "`-1:0` is not UID:GID, such as 1000:1000"),
        ("0:4294967295", "`0:4294967295` is larger than 4294967294"),
    ],
)
def test_a_user_that_cannot_be(values: str, user: str, said: str) -> None:
    done = sidecar("resolve", "--catalogue", values, f"--user={user}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error SC1001 USAGE: invalid value for '--user': {said}; see `sidecar resolve --help`\n"
    )


def test_version_and_help() -> None:
    assert sidecar("--version").stdout == f"sidecar {__version__}\n"
    assert "--catalogue FILE" in sidecar("resolve", "--help").stdout


CATALOGUES = {
    "SC1003 UNKNOWN_KEY: f.yaml: unknown key `data.d.bukcet` (did you mean `bucket`?)": (
        "data: {d: {store: s3, bukcet: 's3://bucket'}}"
    ),
    "SC1004 SOURCE_CONFLICT: f.yaml: `data.d`: has `hostPath` and `existingClaim`; "
    "keep one of `hostPath`, `existingClaim` and `store`": (
        "data: {d: {mountPath: /d, hostPath: /h, existingClaim: c}}"
    ),
    "SC1005 SOURCE_MISSING: f.yaml: `data.d`: says nowhere what to mount; "
    "add one of `hostPath`, `existingClaim` and `store`": "data: {d: {mountPath: /d}}",
    "SC1006 SCHEME_MISMATCH: f.yaml: `data.d.bucket`: `gs://` does not belong to `store: s3`; "
    "write it as `s3://BUCKET` or `s3://BUCKET/PREFIX`": (
        "data: {d: {store: s3, bucket: 'gs://bucket'}}"
    ),
    "SC1007 BUCKET_MISSING: f.yaml: `data.d`: has `store` without `bucket`; "
    "add the bucket's URL": "data: {d: {store: s3}}",
    "SC1008 BUCKET_URL_INVALID: f.yaml: `data.d.bucket`: its host must be the account followed "
    "by one of blob.core.windows.net, blob.core.usgovcloudapi.net, blob.core.chinacloudapi.cn; "
    "write it as `wasbs://CONTAINER@ACCOUNT.blob.core.windows.net` or "
    "`wasbs://CONTAINER@ACCOUNT.blob.core.windows.net/PREFIX`": (
        "data: {d: {store: azure, bucket: 'wasbs://ccc@acc.blob.core.windows.net.evil'}}"
    ),
    "SC1009 SECRET_INCOMPLETE: f.yaml: `data.d`: has `secret` without `secretKey`; "
    "give both, or neither for ambient identity": (
        "data: {d: {store: s3, bucket: 's3://bucket', secret: s}}"
    ),
    "SC1010 MOUNT_PATH_INVALID: f.yaml: `data.d.mountPath`: `/d/../e` has a part that is `..`": (
        "data: {d: {mountPath: /d/../e, hostPath: /h}}"
    ),
    "SC1002 CATALOGUE_INVALID: f.yaml: line 3: the key `d` appears twice in one mapping": (
        "data:\n  d: {hostPath: /h, mountPath: /d}\n  d: {hostPath: /h, mountPath: /e}\n"
    ),
    "SC1022 PATH_OVERLAP: data volume `d` at `/d` and data volume `e` at `/d/e` overlap; "
    "select one of them, or change a `mountPath` in the catalogue": (
        "data:\n  d: {hostPath: /h, mountPath: /d}\n  e: {hostPath: /h, mountPath: /d/e}\n"
    ),
    "SC1024 OUTPUTS_MISSING: every outputs volume is read-only: o; "
    "declare one without `readOnly: true`": (
        "outputs: {o: {hostPath: /h, mountPath: /o, readOnly: true}}"
    ),
}


@pytest.mark.parametrize(("line", "text"), CATALOGUES.items(), ids=lambda text: text[:6])
def test_wrong_catalogue(
    line: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("f.yaml").write_text(text)
    done = sidecar("resolve", "--catalogue", "f.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error {line}\n")


AT = "p.yml: environment.persistence"
SELECTIONS = {
    f"SC1020 VOLUME_UNKNOWN: {AT}.data[0]: no data volume is named `data9` (did you mean "
    "`data2`?); the catalogue declares: data1, data2, data-foo, data-gcs3, data-s3, data-azure": (
        "data: [data9]"
    ),
    f"SC1021 DUPLICATE_SELECTION: {AT}.data[1]: `data1` is already in the list; name it once": (
        "data: [data1, data1]"
    ),
    f"SC1023 OUTPUTS_READ_ONLY: {AT}.outputs: `outputs1` is read-only in the catalogue; "
    "writable are: outputs2, outputs-foo, outputs-gcs3, outputs-s3, outputs-azure": (
        "outputs: outputs1"
    ),
    f"SC1025 SELECTION_INVALID: {AT}.outputs: is a list, but a run has one outputs volume; "
    "write `outputs: 'NAME'`": "outputs: [outputs2]",
}


@pytest.mark.parametrize(("line", "text"), SELECTIONS.items(), ids=lambda text: text[:6])
def test_wrong_selection(line: str, text: str, values: str) -> None:
    Path("p.yml").write_text(f"environment: {{persistence: {{{text}}}}}")
    done = sidecar("resolve", "--catalogue", values, "--polyaxonfile", "p.yml")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error {line}\n")


USAGES = {
    "USAGE: missing command; see `sidecar --help`": [],
    "USAGE: no such command 'resolv'. Did you mean 'resolve'?; see `sidecar --help`": ["resolv"],
    "USAGE: missing option '--catalogue'; see `sidecar resolve --help`": ["resolve"],
    "USAGE: cannot read `absent`: No such file or directory": ["resolve", "--catalogue", "absent"],
    "USAGE: cannot read `.`: Is a directory": ["resolve", "--catalogue", "."],
    "USAGE: --catalogue and --polyaxonfile cannot both read standard input": (
        ["resolve", "--catalogue", "-", "--polyaxonfile", "-"]
    ),
}


@pytest.mark.parametrize(("line", "arguments"), USAGES.items())
def test_wrong_usage(line: str, arguments: list[str]) -> None:
    done = sidecar(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error SC1001 {line}\n")


def test_wrong_run_and_wrong_bytes(values: str) -> None:
    done = sidecar("resolve", "--catalogue", values, "--run", "../x")
    assert done.returncode == 2
    assert done.stderr == (
        "error SC1026 RUN_PATH_INVALID: the run's path: `../x` has a part that is `..`\n"
    )
    Path("latin1.yaml").write_bytes(b"data: {\xfc: {}}")
    done = sidecar("resolve", "--catalogue", "latin1.yaml")
    assert done.returncode == 2
    assert done.stderr == "error SC1002 CATALOGUE_INVALID: latin1.yaml: not UTF-8 (byte 7)\n"


def test_imports_no_sdk(values: str) -> None:
    script = (
        "import sys\n"
        "from sidecar.cli.main import main\n"
        f"main(['resolve', '--catalogue', {values!r}])\n"
        "heavy = {'s3fs', 'gcsfs', 'adlfs', 'fsspec', 'botocore', 'kubernetes', 'fuse'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_is_no_error(values: str) -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    try:
        done = subprocess.run(
            [*SIDECAR, "resolve", "--catalogue", values],
            stdout=sender, stderr=subprocess.PIPE, timeout=60, check=False,
        )  # fmt: skip
    finally:
        os.close(sender)
    assert (done.returncode, done.stderr) == (141, b"")


def test_an_interrupt_prints_nothing(tmp_path: Path) -> None:
    catalogue = tmp_path / "catalogue"
    os.mkfifo(catalogue)
    process = subprocess.Popen(
        [*SIDECAR, "resolve", "--catalogue", str(catalogue)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        # This returns once the command has opened the file; it then waits for the text.
        with catalogue.open("wb"):
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out, err) == (130, b"", b"")
