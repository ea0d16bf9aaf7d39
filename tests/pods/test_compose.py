"""The compose file: its two services, run in order by podman.

The test reads the file itself. Programs for compose files leave health checks to the engine's
timers; podman's are systemd's, which does not run everywhere the tests do.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from sidecar.contract.spec import PersistenceSpec
from sidecar.contract.spec_document import load_spec
from sidecar.mounter.system import mounts
from tests.support.network import Network
from tests.support.pods import Container, Json, make_shared, podman
from tests.support.servers import REPOSITORY, MinioServer

FOLDER = REPOSITORY / "manifests/examples/compose"
FILE = FOLDER / "compose.yaml"
# Keys that the test below handles itself, not by an option of podman.
BY_HAND = {"image", "command", "depends_on", "healthcheck", "stop_grace_period"}
EXPERIMENT = """
id -u
cat /mnt/persistence/data/datasets/digits.csv
echo learned > "$POLYAXON_RUN_OUTPUTS_PATH/model.txt"
"""
AS_ROOT = """
cd /mnt/persistence
for file in x .sidecar/ready outputs/x; do
    if touch "$file" 2> /dev/null; then echo "wrote $file"; fi
done
touch outputs/runs/of-root
"""


def services() -> dict[str, Json]:
    found: dict[str, Json] = yaml.safe_load(FILE.read_text())["services"]
    return found


def resolve(folder: Path) -> PersistenceSpec:
    """Run the command in the file's comment, in the folder; the resulting spec."""
    told = re.findall(r"^#   (sidecar resolve .* > spec\.json)$", FILE.read_text(), re.MULTILINE)
    assert len(told) == 1
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(told[0], shell=True, check=True, cwd=folder, env={**os.environ, "PATH": path})
    return load_spec((folder / "spec.json").read_text(), "spec.json")


def options(service: Json, folder: Path) -> list[str]:
    """podman's options for a service. Raises KeyError for an unknown key."""
    told: list[str] = []
    for key, value in service.items():
        if key in ("privileged", "read_only"):
            told += [f"--{key.replace('_', '-')}"] if value else []
        elif key == "environment":
            told += [word for item in value.items() for word in ("--env", "=".join(item))]
        elif key == "volumes":
            told += [word for mount in value for word in ("--volume", volume(mount, folder))]
        elif key not in BY_HAND:
            raise KeyError(key)
    return told


def volume(mount: str | Json, folder: Path) -> str:
    """A mount in podman's syntax; a named volume is a directory of the folder."""
    if isinstance(mount, str):
        source, _, rest = mount.partition(":")
        if source.startswith("./"):
            return f"{folder / source}:{rest}"
        (folder / "volumes" / source).mkdir(parents=True)
        return f"{folder / 'volumes' / source}:{rest}"
    assert mount["type"] == "bind"
    how = mount["bind"]["propagation"]
    if mount.get("read_only"):
        # Podman leaves the mounts in it as they are; Docker has to be told so.
        assert mount["bind"]["recursive"] == "writable"
        how += ",ro"
    return f"{folder / mount['source']}:{mount['target']}:{how}"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the example, with a directory for the mounts."""
    copy = tmp_path / "compose"
    shutil.copytree(FOLDER, copy)
    make_shared(copy / "shared")
    yield copy
    for mount in reversed(mounts.mounted()):
        if mount.path.startswith(f"{copy}/"):
            mounts.unmount(mount.path)


def test_it_shows_what_the_spec_says(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path, dirs_exist_ok=True)
    spec = resolve(tmp_path)
    assert services()["experiment"]["environment"] == spec.environment
    mounted = services()["sidecar"]["volumes"]
    roots = {mount if isinstance(mount, str) else mount["target"] for mount in mounted}
    assert {
        spec.roots.shared,
        f"state:{spec.roots.state}",
        f"./secrets:{spec.roots.secrets}:ro",
    } < roots


@pytest.mark.usefixtures("images")
def test_the_experiment_starts_when_the_sidecar_is_healthy(tmp_path: Path, folder: Path) -> None:
    sidecar, experiment = services()["sidecar"], services()["experiment"]
    assert experiment["depends_on"] == {"sidecar": {"condition": "service_healthy"}}
    network = Network()
    container = Container(f"test-compose-{uuid.uuid4().hex[:12]}")
    with MinioServer(tmp_path / "s3") as server:
        client = server.client()
        for bucket in ("datasets", "runs"):
            server.create_bucket(bucket)
        client.put_object("datasets", "digits.csv", io.BytesIO(b"seven\n"), 6)
        secret = folder / "secrets/s3-secret/key.json"
        secret.parent.mkdir(parents=True)
        secret.write_text(server.credentials_json())
        resolve(folder)
        network.bring_in(server.port)
        shared = ["--network", f"ns:{network.path}", "--pull", "never"]
        try:
            podman(
                *("run", "--detach", "--name", container.name, "--log-driver", "k8s-file"),
                *shared, *options(sidecar, folder), sidecar["image"], *sidecar["command"],
            )  # fmt: skip
            wait_until_healthy(container, sidecar["healthcheck"])
            done = podman(
                *("run", "--rm", *shared, *options(experiment, folder)),
                *(experiment["image"], "sh", "-ec", EXPERIMENT),
                check=False,
            )
            assert (done.stdout, done.stderr) == ("1000\nseven\n", "")
            done = podman(
                *("run", "--rm", "--user", "0", *shared, *options(experiment, folder)),
                *(experiment["image"], "sh", "-ec", AS_ROOT),
                check=False,
            )
            assert (done.stdout, done.stderr) == ("", "")
            podman("stop", "--time", sidecar["stop_grace_period"].removesuffix("s"), container.name)
            assert container.wait() == 0, container.logs()
        finally:
            container.remove()
            network.close()
        saved = client.get_object("runs", "me/digits/experiments/1/model.txt")
        with saved:
            assert saved.read() == b"learned\n"
    below = [mount.path for mount in mounts.mounted() if mount.path.startswith(f"{folder}/")]
    assert below == [str(folder / "shared")]


def wait_until_healthy(container: Container, check: Json) -> None:
    kind, *command = check["test"]
    assert kind == "CMD"
    for _ in range(check["retries"]):
        if podman("exec", container.name, *command, check=False).returncode == 0:
            return
        assert container.running, container.logs()
        time.sleep(0.1)  # Shorter than the check's interval, to save time.
    raise AssertionError(container.logs())
