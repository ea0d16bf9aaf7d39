"""The main job: five kinds of volume in one run, used by ordinary programs."""

from __future__ import annotations

import hashlib
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from sidecar.contract.options import TransportName
from sidecar.contract.spec import ClaimSource, HostPathSource, Volume
from tests.support.mounted import mounts_at
from tests.support.servers import AzureServer, GcsServer, S3Server
from tests.support.sidecar import Sidecar, bucket_volume

TRANSPORTS: list[TransportName] = ["kernel", "libfuse"]


def run(*command: str, cwd: Path | None = None) -> str:
    """Run a program; its output. Fails with what it printed."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}: {result.stderr}"
    return result.stdout


def digest(path: Path) -> str:
    return run("sha256sum", str(path)).split()[0]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_five_kinds_of_volume_in_one_run(
    tmp_path: Path,
    transport: TransportName,
    s3_server: S3Server,
    gcs_server: GcsServer,
    azure_server: AzureServer,
) -> None:
    content = os.urandom(3_000_000)
    names = {store: f"main-job-{transport}-{store}" for store in ("s3", "gcs", "azure")}
    for server, store in ((s3_server, "s3"), (gcs_server, "gcs"), (azure_server, "azure")):
        server.create_bucket(names[store])
    host, claim = tmp_path / "host", tmp_path / "claim"
    host.mkdir()
    claim.mkdir()
    (host / "labels.csv").write_text("a,b\n1,2\n")
    account = azure_server.credentials()["AZURE_ACCOUNT_NAME"]
    volumes = [
        Volume(
            name="host",
            kind="data",
            path=str(host),
            read_only=True,
            source=HostPathSource(host_path="/path/to/data"),
        ),
        Volume(name="claim", kind="data", path=str(claim), source=ClaimSource(claim="pvc")),
        bucket_volume("s3", tmp_path / "m/s3", "s3", f"s3://{names['s3']}"),
        bucket_volume("gcs", tmp_path / "m/gcs", "gcs", f"gs://{names['gcs']}"),
        Volume(
            name="azure",
            kind="outputs",
            path=str(tmp_path / "m/azure"),
            source=replace(
                bucket_volume("azure", tmp_path, "azure", f"wasbs://{names['azure']}").source,
                account=account,
            ),
        ),
    ]
    sidecar = Sidecar(
        tmp_path / "run",
        volumes,
        secrets={
            "s3": s3_server.credentials_json(),
            "gcs": gcs_server.credentials_json(),
            "azure": azure_server.credentials_json(),
        },
        outputs_path=tmp_path / "m/azure/user/project/experiments/1",
        environment={"STORAGE_EMULATOR_HOST": gcs_server.endpoint},
        transport=transport,
    )
    with sidecar:
        outputs = tmp_path / "m/azure/user/project/experiments/1"
        assert outputs.is_dir()
        source = tmp_path / "source.bin"
        source.write_bytes(content)
        tree = tmp_path / "tree"
        (tree / "sub").mkdir(parents=True)
        for number in range(20):
            (tree / f"sub/{number}.txt").write_text(f"file {number}\n")
        for name in ("s3", "gcs", "azure"):
            target = tmp_path / "m" / name
            run("cp", str(source), str(target / "copied.bin"))
            assert digest(target / "copied.bin") == hashlib.sha256(content).hexdigest()
            run("tar", "cf", str(target / "tree.tar"), "-C", str(tree), ".")
            (target / "unpacked").mkdir()
            run("tar", "xf", str(target / "tree.tar"), "-C", str(target / "unpacked"))
            run("diff", "-r", str(tree), str(target / "unpacked"))
            code = "import sys; print(sum(len(l) for l in open(sys.argv[1])))"
            assert run("python3", "-c", code, str(target / "unpacked/sub/7.txt")) == "7\n"
            run("mv", str(target / "copied.bin"), str(target / "moved.bin"))
            run("rm", "-r", str(target / "unpacked/sub"))
        with (outputs / "metrics.jsonl").open("a") as log:
            log.write('{"step": 1}\n')
        assert sidecar.stop() == 0
    for volume in sidecar.spec.buckets:
        assert not mounts_at(volume.path)

    # Independent clients see the same bytes.
    s3 = s3_server.client().get_object(names["s3"], "moved.bin").read()
    gcs = gcs_server.client().bucket(names["gcs"]).blob("moved.bin").download_as_bytes()
    container = azure_server.client().get_container_client(names["azure"])
    azure = container.download_blob("moved.bin").readall()
    assert s3 == gcs == azure == content
    log = container.download_blob("user/project/experiments/1/metrics.jsonl").readall()
    assert log == b'{"step": 1}\n'
    listed = s3_server.client().list_objects(names["s3"], recursive=True)
    keys = [item.object_name for item in listed]
    assert "copied.bin" not in keys
    assert not [key for key in keys if key.startswith("unpacked/sub")]
