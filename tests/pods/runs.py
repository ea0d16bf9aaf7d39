"""The example experiment as a pod: five kinds of volume, three clouds, one training script."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sidecar.contract.pod import CONTAINER_NAME as SIDECAR
from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.manifests import inject_manifests
from sidecar.control.injection.sidecar_container import Injection
from sidecar.demo.dataset import labels_csv, load_digits
from tests.support.pods import EXPERIMENT_IMAGE, SIDECAR_IMAGE, Container, Json, Pod
from tests.support.servers import AzureServer, GcsServer, S3Server
from tests.support.waiting import wait_until

RUN = "user/project/experiments/1"
EXPERIMENT = "experiment"
USER = 1000
NOTES = {"host": "from the node", "claim": "from a claim"}

_DIGITS = 150


class Clouds:
    """The run's data, one part in each cloud, and the bucket of its outputs.

    Args:
        epochs: how long it trains.
    """

    def __init__(
        self, s3: S3Server, gcs: GcsServer, azure: AzureServer, *, epochs: int = 3
    ) -> None:
        self.s3, self.gcs, self.azure = s3, gcs, azure
        suffix = uuid.uuid4().hex[:8]
        self.images, self.labels = f"images-{suffix}", f"labels-{suffix}"
        self.settings, self.outputs = f"settings-{suffix}", f"outputs-{suffix}"
        for server, name in (
            (s3, self.images),
            (s3, self.outputs),
            (gcs, self.labels),
            (azure, self.settings),
        ):
            server.create_bucket(name)
        digits = load_digits()[:_DIGITS]
        client = s3.client()
        for digit in digits:
            key = f"digits/{digit.name}"
            client.put_object(self.images, key, io.BytesIO(digit.image), len(digit.image))
        table = gcs.client().bucket(self.labels).blob("labels.csv")
        table.upload_from_string(labels_csv(digits))
        settings = {"epochs": epochs, "rate": 0.02, "seed": 7}
        with azure.client() as blobs:
            blobs.get_blob_client(self.settings, "train.json").upload_blob(json.dumps(settings))

    def ports(self) -> list[int]:
        """Ports of the clouds' servers on this machine's loopback."""
        servers = (self.s3, self.gcs, self.gcs.tokens, self.azure)
        return [server.port for server in servers]

    def catalogue(self, directory: Path) -> str:
        """The admin's catalogue, with the node's data below ``directory``."""

        def bucket(store: str, url: str) -> Json:
            return {"store": store, "bucket": url, "secret": "clouds", "secretKey": f"{store}.json"}

        azure = f"wasbs://{self.settings}@{self.azure.account}.blob.core.windows.net/"
        host = str(directory / "host")
        volumes = {
            "data": {
                "images": {**bucket("s3", f"s3://{self.images}/digits"), "readOnly": True},
                "labels": {**bucket("gcs", f"gs://{self.labels}"), "mountPath": "/data/labels"},
                "settings": bucket("azure", azure),
                "host": {"hostPath": host, "mountPath": "/data/host", "readOnly": True},
                "claim": {"existingClaim": "claim", "mountPath": "/data/claim"},
            },
            "outputs": {"runs": bucket("s3", f"s3://{self.outputs}/team")},
        }
        return yaml.safe_dump(volumes)

    def secrets(self) -> dict[str, dict[str, str]]:
        """One secret with the keys of three stores."""
        return {
            "clouds": {
                "s3.json": self.s3.credentials_json(),
                "gcs.json": self.gcs.credentials_json(),
                "azure.json": self.azure.credentials_json(),
            }
        }

    def saved(self) -> dict[str, str]:
        """Key below the run to SHA-256 of the object, by an independent client."""
        client = self.s3.client()
        start = f"team/{RUN}/"
        found = {}
        for item in client.list_objects(self.outputs, prefix=start, recursive=True):
            if not item.object_name.endswith("/"):
                with client.get_object(self.outputs, item.object_name) as answer:
                    content = answer.read()
                found[item.object_name.removeprefix(start)] = hashlib.sha256(content).hexdigest()
        return found


def experiment_of(command: list[str] | None = None, *, grace_s: int = 30) -> Json:
    """The user's pod, without anything about buckets or the sidecar.

    Args:
        command: instead of reading the two directories and training.
    """
    script = "cat /data/host/note.txt /data/claim/note.txt; exec python3 /experiment/train.py"
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "experiment",
            "namespace": "runs",
            "annotations": {"mount-sidecar.io/run": RUN},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_s,
            "securityContext": {"runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER},
            "containers": [
                {
                    "name": EXPERIMENT,
                    "image": EXPERIMENT_IMAGE,
                    "command": command or ["sh", "-ec", script],
                    "securityContext": {
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def pod_of(
    directory: Path,
    clouds: Clouds,
    *,
    secrets: dict[str, dict[str, str]] | None = None,
    memory: str | None = None,
    command: list[str] | None = None,
    context: Json | None = None,
) -> Pod:
    """The pod of the run, as `sidecar inject` makes it of :func:`experiment_of`.

    Args:
        secrets: instead of the right ones.
        memory: limit of the sidecar.
        command: of the experiment.
        context: securityContext of the pod, instead of one that names the user.
    """
    experiment = experiment_of(command)
    if context is not None:
        experiment["spec"]["securityContext"] = context
    if memory:
        experiment["metadata"]["annotations"]["mount-sidecar.io/memory-limit"] = memory
    catalogue = parse_catalogue(clouds.catalogue(directory), "the test's catalogue")
    text = inject_manifests(
        yaml.safe_dump(experiment), "the pod", catalogue, Injection(image=SIDECAR_IMAGE)
    )
    return injected_pod(directory, clouds, yaml.safe_load(text), secrets=secrets)


def injected_pod(
    directory: Path,
    clouds: Clouds,
    manifest: Json,
    *,
    secrets: dict[str, dict[str, str]] | None = None,
) -> Pod:
    """A pod with what its catalogue refers to: directories, secrets, the clouds."""
    for name, note in NOTES.items():
        (directory / name).mkdir(parents=True)
        (directory / name / "note.txt").write_text(note)
        (directory / name).chmod(0o777)
    for group in ("initContainers", "containers"):
        for container in manifest["spec"].get(group, []):
            if container["name"] == SIDECAR:
                # For the emulator of GCS.
                emulator = {"name": "STORAGE_EMULATOR_HOST", "value": clouds.gcs.endpoint}
                container["env"].append(emulator)
    return Pod(
        directory / "pod",
        manifest,
        secrets=secrets or clouds.secrets(),
        claims={"claim": directory / "claim"},
        ports=clouds.ports(),
    )


def events(experiment: Container) -> list[dict[str, Any]]:
    """The training script's messages so far."""
    lines = experiment.logs().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def told_saved(experiment: Container) -> dict[str, str]:
    """Path below the run to SHA-256 of what the script last wrote there."""
    return {
        event["path"].partition(f"{RUN}/")[2]: event["sha256"]
        for event in events(experiment)
        if event["event"] == "saved"
    }


def status_of(pod: Pod) -> dict[str, dict[str, Any]]:
    """Name of each volume to its part of the status document."""
    path = pod.host_path(f"{SIDECAR}-state") / "status.json"
    return {volume["name"]: volume for volume in json.loads(path.read_text())["volumes"]}


def wait_for(done: Callable[[], bool], pod: Pod, timeout_s: float = 60.0) -> None:
    """Wait for ``done()``. Raises AssertionError with the sidecar's log."""
    wait_until(done, pod[SIDECAR].logs, timeout_s, poll_s=0.05)


def everything_is_gone(pod: Pod) -> None:
    """Nothing is mounted on the host, and the kubelet can delete the pod's directories."""
    assert pod.mounted() == []
    shared = pod.host_path(f"{SIDECAR}-shared")
    pod.delete_volumes()
    assert not shared.exists()
    for name, note in NOTES.items():  # Nothing was deleted through a mount.
        assert (pod.directory.parent / name / "note.txt").read_text() == note


def kill_sidecar(pod: Pod) -> int:
    """SIGKILL the sidecar so that none of its processes can still unmount; its exit status.

    The kernel closes the first process's descriptors before it kills the others, so a running
    worker may notice the supervisor's end and clean up; a stopped one cannot.
    """
    pids = [str(v["worker_pid"]) for v in status_of(pod).values() if v["worker_pid"]]
    pod[SIDECAR].execute("sh", "-c", f"kill -STOP {' '.join(pids)}")
    pod[SIDECAR].signal("KILL")
    return pod[SIDECAR].wait()
