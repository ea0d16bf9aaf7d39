"""The example experiment as a pod: five kinds of volume, three clouds, one training script."""

from __future__ import annotations

import hashlib
import io
import json
import uuid
from pathlib import Path
from typing import Any

import yaml

from sidecar.control.catalogue import parse_catalogue
from sidecar.control.resolve import resolve
from sidecar.control.selection import Selection
from sidecar.demo.dataset import labels_csv, load_digits
from sidecar.mounter.mounts import FUSE_DEVICE
from sidecar.spec import SPEC_FILE, Access, PersistenceSpec, Times
from tests.support.pods import EXPERIMENT_IMAGE, SIDECAR_IMAGE, Container, Json, Pod
from tests.support.servers import AzureServer, GcsServer, S3Server, free_port

RUN = "user/project/experiments/1"
SIDECAR = "mount-sidecar"
EXPERIMENT = "experiment"
USER = 1000
NOTES = {"host": "from the node", "claim": "from a claim"}

_DIGITS = 150
_SPEC_ANNOTATION = "mount-sidecar.io/spec"


class Clouds:
    """What the run reads, one part in each cloud, and the bucket for what it saves.

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

    def catalogue(self) -> Json:
        """What an admin would declare."""

        def bucket(store: str, url: str) -> Json:
            return {"store": store, "bucket": url, "secret": "clouds", "secretKey": f"{store}.json"}

        azure = f"wasbs://{self.settings}@{self.azure.account}.blob.core.windows.net/"
        return {
            "data": {
                "images": {**bucket("s3", f"s3://{self.images}/digits"), "readOnly": True},
                "labels": bucket("gcs", f"gs://{self.labels}"),
                "settings": bucket("azure", azure),
                "host": {"hostPath": "/path/to/data", "mountPath": "/data/host", "readOnly": True},
                "claim": {"existingClaim": "claim", "mountPath": "/data/claim"},
            },
            "outputs": {"runs": bucket("s3", f"s3://{self.outputs}/team")},
        }

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
        """Key below the run to SHA-256 of what the bucket has, by an independent client."""
        client = self.s3.client()
        start = f"team/{RUN}/"
        found = {}
        for item in client.list_objects(self.outputs, prefix=start, recursive=True):
            if not item.object_name.endswith("/"):
                with client.get_object(self.outputs, item.object_name) as answer:
                    content = answer.read()
                found[item.object_name.removeprefix(start)] = hashlib.sha256(content).hexdigest()
        return found


def spec_of(clouds: Clouds, times: Times) -> PersistenceSpec:
    """The resolved spec, in a pod whose experiment is uid 1000; a free port for HTTP."""
    catalogue = parse_catalogue(yaml.safe_dump(clouds.catalogue()), "the test's catalogue")
    spec = resolve(catalogue, Selection(), run=RUN)
    return spec.model_copy(
        update={
            "http": spec.http.model_copy(update={"host": "127.0.0.1", "port": free_port()}),
            "access": Access(uid=USER, gid=USER),
            "times": times,
        }
    )


def pod_of(
    directory: Path,
    clouds: Clouds,
    *,
    secrets: dict[str, dict[str, str]] | None = None,
    times: Times | None = None,
    memory: str | None = None,
    grace_s: int = 60,
    command: list[str] | None = None,
) -> Pod:
    """The pod of the run.

    Args:
        secrets: instead of the right ones.
        memory: limit of the sidecar.
        command: instead of reading the two directories and training.
    """
    spec = spec_of(clouds, times or Times(ready_timeout_s=40))
    for name, note in NOTES.items():
        (directory / name).mkdir(parents=True)
        (directory / name / "note.txt").write_text(note)
        (directory / name).chmod(0o777)
    paths: list[Json] = [
        {"name": "host", "mountPath": "/data/host", "readOnly": True},
        {"name": "claim", "mountPath": "/data/claim"},
    ]
    shared: Json = {"name": "shared", "mountPath": spec.roots.shared}
    sidecar: Json = {
        "name": SIDECAR,
        "image": SIDECAR_IMAGE,
        "args": ["mount", "--spec", SPEC_FILE],
        "restartPolicy": "Always",
        # Only for the server that stands in for Google's.
        "env": [{"name": "STORAGE_EMULATOR_HOST", "value": clouds.gcs.endpoint}],
        "securityContext": {
            "privileged": True,
            "readOnlyRootFilesystem": True,
            "runAsUser": 0,
            "runAsGroup": 0,
        },
        "startupProbe": {"httpGet": {"path": "/startupz", "port": spec.http.port}},
        "resources": {"limits": {"memory": memory}} if memory else {},
        "volumeMounts": [
            {**shared, "mountPropagation": "Bidirectional"},
            {"name": "state", "mountPath": spec.roots.state},
            {"name": "spec", "mountPath": str(Path(SPEC_FILE).parent), "readOnly": True},
            {"name": "fuse", "mountPath": FUSE_DEVICE},
            {"name": "secrets", "mountPath": f"{spec.roots.secrets}/clouds", "readOnly": True},
            *paths,
        ],
    }
    script = "cat /data/host/note.txt /data/claim/note.txt; exec python3 /experiment/train.py"
    experiment: Json = {
        "name": EXPERIMENT,
        "image": EXPERIMENT_IMAGE,
        "command": command or ["sh", "-ec", script],
        "env": [{"name": name, "value": value} for name, value in spec.environment.items()],
        "securityContext": {
            "runAsUser": USER,
            "runAsGroup": USER,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{**shared, "mountPropagation": "HostToContainer"}, *paths],
    }
    manifest: Json = {
        "metadata": {
            "name": "experiment",
            "namespace": "runs",
            "annotations": {_SPEC_ANNOTATION: spec.to_json()},
        },
        "spec": {
            "terminationGracePeriodSeconds": grace_s,
            "initContainers": [sidecar],
            "containers": [experiment],
            "volumes": [
                {"name": "shared", "emptyDir": {}},
                {"name": "state", "emptyDir": {}},
                {"name": "fuse", "hostPath": {"path": FUSE_DEVICE, "type": "CharDevice"}},
                {"name": "secrets", "secret": {"secretName": "clouds"}},
                {"name": "host", "hostPath": {"path": str(directory / "host")}},
                {"name": "claim", "persistentVolumeClaim": {"claimName": "claim"}},
                {
                    "name": "spec",
                    "downwardAPI": {
                        "items": [
                            {
                                "path": Path(SPEC_FILE).name,
                                "fieldRef": {
                                    "fieldPath": f"metadata.annotations['{_SPEC_ANNOTATION}']"
                                },
                            }
                        ]
                    },
                },
            ],
        },
    }
    return Pod(
        directory / "pod",
        manifest,
        secrets=secrets or clouds.secrets(),
        claims={"claim": directory / "claim"},
    )


def events(experiment: Container) -> list[dict[str, Any]]:
    """What the training script told so far."""
    lines = experiment.logs().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def told_saved(experiment: Container) -> dict[str, str]:
    """Path below the run to SHA-256 of what the script handed to the file system last."""
    return {
        event["path"].partition(f"{RUN}/")[2]: event["sha256"]
        for event in events(experiment)
        if event["event"] == "saved"
    }


def kill_sidecar(pod: Pod) -> int:
    """SIGKILL the sidecar so that nothing of it can unmount any more; its exit status.

    The kernel closes the first process's descriptors before it ends the others, so a worker that
    runs may see that the supervisor is gone, and clean up; one that is stopped cannot.
    """
    status = json.loads((pod.host_path("state") / "status.json").read_text())
    pids = [str(v["worker_pid"]) for v in status["volumes"] if v["worker_pid"]]
    pod[SIDECAR].execute("sh", "-c", f"kill -STOP {' '.join(pids)}")
    pod[SIDECAR].signal("KILL")
    return pod[SIDECAR].wait()
