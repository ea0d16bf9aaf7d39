"""No secret value appears outside the secrets, after success, failures and retries."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import Options, Times
from sidecar.contract.spec import Volume
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud
from tests.support.servers import AzureServer, GcsServer, MinioServer
from tests.support.sidecar import Sidecar

BUCKET = "canary"
CONTENT = b"0123456789abcdef" * 64 * 1024 * 12


def canary(name: str) -> str:
    return f"canary-{name}-{secrets.token_hex(12)}"


def forms(value: str) -> set[bytes]:
    """A value as it is, URL-encoded, and inside base64 at each of three alignments."""
    raw = value.encode()
    found = {raw, urllib.parse.quote_plus(value).encode()}
    for shift in range(3):
        inner = base64.b64encode(bytes(shift) + raw)
        whole = inner[-(-shift * 4 // 3) :].rstrip(b"=")[:-2]
        found |= {whole, whole.translate(bytes.maketrans(b"+/", b"-_"))}
    return found


class Canaries:
    """The secret values in use, and where they must not be.

    Args:
        values: strings that are long enough to be found by chance nowhere.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._needles = set().union(*(forms(value) for value in values))

    def in_bytes(self, content: bytes) -> bool:
        return any(needle in content for needle in self._needles)

    def in_files(self, root: Path) -> list[str]:
        files = [root] if root.is_file() else [path for path in root.rglob("*") if path.is_file()]
        found = []
        for path in files:
            with contextlib.suppress(FileNotFoundError):  # A spool file, deleted meanwhile.
                if self.in_bytes(path.read_bytes()):
                    found.append(str(path))
        return found

    def in_processes(self, sidecar: Sidecar) -> list[str]:
        found = []
        for pid in sidecar.processes():
            for name in ("cmdline", "environ"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if self.in_bytes(Path(f"/proc/{pid}/{name}").read_bytes()):
                        found.append(f"{pid} {name}")
        return found

    def assert_unseen(self, sidecar: Sidecar) -> None:
        """Search the run's files, output, pages, arguments and environments."""
        assert self.in_processes(sidecar) == []
        shown = [
            sidecar.state,
            sidecar.shared,
            sidecar.log_file,
            sidecar.output_file,
            sidecar.termination_message,
            sidecar.spec_file,
        ]
        assert [path for root in shown for path in self.in_files(root)] == []

    def assert_unseen_on_pages(self, sidecar: Sidecar) -> None:
        for page in ("/metrics", "/statusz", "/startupz", "/livez"):
            assert not self.in_bytes(sidecar.get(page)[1].encode()), page


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Cloud]]:
    """A bucket on each cloud, whose login is a canary."""
    root = tmp_path_factory.mktemp("canary")
    azure_key = base64.b64encode(canary("azure").encode()).decode()
    with (
        MinioServer(root / "s3", secret_access_key=canary("s3")) as s3,
        GcsServer(root / "gcs") as gcs,
        AzureServer(root / "azure", account_key=azure_key) as azure,
    ):
        gcs.tokens.token_start = canary("token")
        found: dict[str, Cloud] = {
            "s3": S3Cloud(s3, BUCKET),
            "gcs": GcsCloud(gcs, BUCKET),
            "azure": AzureCloud(azure, BUCKET),
        }
        for cloud in found.values():
            cloud.server.create_bucket(BUCKET)
        yield found


def secret_values(fields: Mapping[str, str]) -> list[str]:
    """The strings of a secret that nobody may see."""
    values = [
        fields[name]
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AZURE_ACCOUNT_KEY")
        if name in fields
    ]
    # base64 keys also decoded; PEM line by line.
    values += [
        base64.b64decode(fields[name]).decode() for name in ("AZURE_ACCOUNT_KEY",) if name in fields
    ]
    values += [line for line in fields.get("private_key", "").split("\n") if len(line) > 40]
    return values


def start(
    directory: Path,
    clouds: Mapping[str, Cloud],
    contents: Mapping[str, Mapping[str, str]],
) -> Sidecar:
    volumes = [
        Volume(
            name=name,
            kind="data",
            path=str(directory / "m" / name),
            source=replace(clouds[name].source(), secret=name),
        )
        for name in contents
    ]
    return Sidecar(
        directory / "run",
        volumes,
        secrets={name: json.dumps(fields) for name, fields in contents.items()},
        times=Times(ready_timeout_s=20),
        options=Options(retry_s=1),
    )


def test_no_secret_is_seen(
    tmp_path: Path, clouds: dict[str, Cloud], monkeypatch: pytest.MonkeyPatch
) -> None:
    gcs = clouds["gcs"].server
    assert isinstance(gcs, GcsServer)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.endpoint)
    contents = {name: cloud.server.credentials() for name, cloud in clouds.items()}
    values = [value for fields in contents.values() for value in secret_values(fields)]
    canaries = Canaries([*values, gcs.tokens.token_start])
    # The search itself works.
    for fields in contents.values():
        assert canaries.in_bytes(json.dumps(fields).encode())
    assert canaries.in_bytes(base64.b64encode(b"ab" + gcs.tokens.token_start.encode()))

    sidecar = start(tmp_path, clouds, contents)
    with sidecar:
        # Success.
        for name in clouds:
            path = tmp_path / "m" / name / "file"
            path.write_bytes(CONTENT)
            assert path.read_bytes() == CONTENT
        assert gcs.tokens.granted > 0
        canaries.assert_unseen(sidecar)
        canaries.assert_unseen_on_pages(sidecar)
        # Outages: retries, then errors, of reads and writes, and what cannot be saved.
        with contextlib.ExitStack() as stack:
            folders = [tmp_path / "m" / name for name in clouds]
            files = [os.open(path / "new", os.O_WRONLY | os.O_CREAT, 0o644) for path in folders]
            for file in files:
                stack.callback(close, file)
            for cloud in clouds.values():
                cloud.server.stop()
                stack.callback(start_again, cloud)
            for folder, file in zip(folders, files, strict=True):
                os.write(file, b"new")
                with pytest.raises(OSError, match=r"Errno 5"):
                    os.fsync(file)
                time.sleep(1.1)  # names that were listed count for a second
                with pytest.raises(OSError, match=r"Errno 5"):
                    os.listdir(folder)
            assert sidecar.metric("mount_sidecar_store_retries_total") > 0
            canaries.assert_unseen(sidecar)
            canaries.assert_unseen_on_pages(sidecar)
            assert sidecar.stop() == 4
            for line in sidecar.said()[1:]:
                assert re.match(r"not saved: data/\w+: new \(SC1047: ", line), line
    canaries.assert_unseen(sidecar)


def start_again(cloud: Cloud) -> None:
    cloud.server.start()
    if isinstance(cloud.server, GcsServer):  # which keeps its buckets in memory
        cloud.server.create_bucket(BUCKET)


def close(descriptor: int) -> None:
    """Close a file whose mount is gone."""
    with contextlib.suppress(OSError):
        os.close(descriptor)


def wrong_secret(case: str, cloud: Cloud) -> tuple[dict[str, str], list[str]]:
    """A secret of the cloud with a wrong value, and the canaries in it."""
    mark = canary(case)
    key = base64.b64encode(mark.encode()).decode()
    fields = cloud.server.credentials()
    right = fields.get("AZURE_CONNECTION_STRING", "")
    changes = {
        "s3": {"AWS_SECRET_ACCESS_KEY": mark},
        "s3-token": {"AWS_SECURITY_TOKEN": mark},
        "gcs": {"private_key": f"-----BEGIN PRIVATE KEY-----\n{mark}\n-----END"},
        "azure": {
            "AZURE_ACCOUNT_KEY": key,
            "AZURE_CONNECTION_STRING": right.replace(fields.get("AZURE_ACCOUNT_KEY", "-"), key),
        },
        "azure-connection": {"AZURE_CONNECTION_STRING": f"AccountKey={mark}"},
    }
    return {**fields, **changes[case]}, [mark, key]


@pytest.mark.parametrize("case", ["s3", "s3-token", "gcs", "azure", "azure-connection"])
def test_no_secret_is_seen_when_it_is_wrong(
    tmp_path: Path, clouds: dict[str, Cloud], monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name = case.partition("-")[0]
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", clouds["gcs"].server.endpoint)
    fields, marks = wrong_secret(case, clouds[name])
    canaries = Canaries(marks)
    sidecar = start(tmp_path, clouds, {name: fields})
    try:
        sidecar.start(wait=False)
        assert sidecar.wait() == 3
        (line,) = sidecar.said()
        assert re.match(r"error SC10(33|43) ", line), line
        canaries.assert_unseen(sidecar)
    finally:
        sidecar.clean_up()
