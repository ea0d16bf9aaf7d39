"""The output of `sidecar inject`, run as the kubelet would, from start to end.

`test_image.py` has the same pods with failures.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sidecar.control.catalogue.catalogue import parse_catalogue
from sidecar.control.injection.manifests import inject_manifests
from sidecar.control.injection.sidecar_container import Injection
from tests.pods.runs import (
    EXPERIMENT,
    RUN,
    SIDECAR,
    USER,
    Clouds,
    everything_is_gone,
    experiment_of,
    injected_pod,
    pod_of,
    wait_for,
)
from tests.support.pods import SIDECAR_IMAGE, Json, Pod

pytestmark = pytest.mark.usefixtures("images")

GROUP = 2000
LISTS = """
import json, os, pathlib
data = json.loads(os.environ["POLYAXON_RUN_DATA_PATHS"])
print(json.dumps({name: [path, len(os.listdir(path))] for name, path in data.items()}))
pathlib.Path(data["claim"], "from-the-job").write_text("a claim's")
pathlib.Path(os.environ["POLYAXON_RUN_OUTPUTS_PATH"], "done.txt").write_text("a bucket's")
status = pathlib.Path(data["labels"], "labels.csv").stat()
print(os.getuid(), os.getgid(), status.st_uid, status.st_gid, oct(status.st_mode & 0o777))
"""
# On SIGTERM it takes a second to save, as frameworks that write a last checkpoint.
SAVES_AT_THE_END = """
import os, signal, sys, time
def save(number, frame):
    print("told to stop", flush=True)
    time.sleep(1)
    with open(os.environ["POLYAXON_RUN_OUTPUTS_PATH"] + "/last.ckpt", "w") as file:
        file.write("the last step")
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("training", flush=True)
while True:
    time.sleep(1)
"""


def pod_of_the_job(job: Json) -> Json:
    """The pod that the Job controller creates for a Job."""
    template = job["spec"]["template"]
    metadata = {**template["metadata"], "name": f"{job['metadata']['name']}-x7k2p"}
    return {"metadata": metadata, "spec": template["spec"]}


def test_a_job_as_the_command_prints_it(tmp_path: Path, clouds: Clouds) -> None:
    experiment = experiment_of(["python3", "-c", LISTS])
    experiment["spec"]["securityContext"]["fsGroup"] = GROUP
    template = {key: experiment[key] for key in ("metadata", "spec")}
    del template["metadata"]["name"]
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": {"template": template},
    }
    catalogue = tmp_path / "catalogue.yaml"
    catalogue.write_text(clouds.catalogue(tmp_path))
    command = [sys.executable, "-m", "sidecar", "inject", "--catalogue", str(catalogue)]
    done = subprocess.run(
        [*command, "--image", SIDECAR_IMAGE],
        input=yaml.safe_dump(job),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

    injected = pod_of_the_job(yaml.safe_load(done.stdout))
    with injected_pod(tmp_path, clouds, injected) as pod:
        assert pod[EXPERIMENT].wait() == 0, pod[EXPERIMENT].logs()
        found, who = pod[EXPERIMENT].logs().splitlines()
        assert json.loads(found) == {
            "images": ["/mnt/persistence/data/images", 150],
            "labels": ["/data/labels", 1],
            "settings": ["/mnt/persistence/data/settings", 1],
            "host": ["/data/host", 1],
            "claim": ["/data/claim", 1],
        }
        assert who == f"{USER} {USER} {USER} {GROUP} 0o664"
        assert pod.stop_sidecars() == {SIDECAR: 0}, pod[SIDECAR].logs()
        assert pod.termination_message(SIDECAR) == ""
        assert list(clouds.saved()) == ["done.txt"]
        assert (tmp_path / "claim/from-the-job").read_text() == "a claim's"
        everything_is_gone(pod)


def is_told_to_stop(pod: Pod) -> None:
    """Delete a training pod: the experiment has time to save, and all that is stored."""
    wait_for(lambda: "training" in pod[EXPERIMENT].logs(), pod)
    assert pod.delete() == {EXPERIMENT: 0, SIDECAR: 0}, pod[SIDECAR].logs()
    assert pod[EXPERIMENT].logs() == "training\ntold to stop\nsaved\n"
    assert pod.termination_message(SIDECAR) == ""
    everything_is_gone(pod)


def test_a_pod_that_is_deleted_stops_its_experiment_first(tmp_path: Path, clouds: Clouds) -> None:
    with pod_of(tmp_path, clouds, command=["python3", "-c", SAVES_AT_THE_END]) as pod:
        is_told_to_stop(pod)
    assert list(clouds.saved()) == ["last.ckpt"]


def without_native_sidecars(directory: Path, clouds: Clouds, command: list[str]) -> Json:
    """As for a Kubernetes before 1.29. Ordinary containers start in order, and stop at once."""
    experiment = experiment_of(command, grace_s=3)
    experiment["spec"]["restartPolicy"] = "Always"  # As a Deployment's, which never completes.
    selected = '["images", "settings", "host", "claim"]'  # `labels` has its own path.
    experiment["metadata"].setdefault("annotations", {})["mount-sidecar.io/data"] = selected
    catalogue = parse_catalogue(clouds.catalogue(directory), "the test's catalogue")
    injection = Injection(image=SIDECAR_IMAGE, native=False)
    text = inject_manifests(yaml.safe_dump(experiment), "the pod", catalogue, injection)
    manifest: Json = yaml.safe_load(text)
    assert "initContainers" not in manifest["spec"]
    return manifest


def test_without_native_sidecars_hooks_keep_the_order(tmp_path: Path, clouds: Clouds) -> None:
    manifest = without_native_sidecars(tmp_path, clouds, ["python3", "-c", SAVES_AT_THE_END])
    with injected_pod(tmp_path, clouds, manifest) as pod:
        is_told_to_stop(pod)
    assert list(clouds.saved()) == ["last.ckpt"]


def test_without_native_sidecars_a_failure_is_no_empty_directory(
    tmp_path: Path, clouds: Clouds
) -> None:
    """The kubelet starts the next container nevertheless; it must not find empty directories."""
    script = """
    ls "$POLYAXON_RUN_OUTPUTS_PATH" /mnt/persistence/data/images
    mkdir -p "$POLYAXON_RUN_OUTPUTS_PATH"
    """
    manifest = without_native_sidecars(tmp_path, clouds, ["sh", "-c", script])
    secrets = clouds.secrets()
    secrets["clouds"]["s3.json"] = "{}"
    with injected_pod(tmp_path, clouds, manifest, secrets=secrets) as pod:
        assert pod[SIDECAR].wait() == 3
        assert pod.termination_message(SIDECAR).startswith("error SC1032 SECRET_KEY_MISSING: ")
        assert pod[EXPERIMENT].wait() != 0
        said = pod[EXPERIMENT].logs()
        assert f"cannot access '/mnt/persistence/outputs/runs/{RUN}'" in said
        assert "cannot access '/mnt/persistence/data/images'" in said
        assert "Read-only file system" in said
        everything_is_gone(pod)


SAVES_AS_ITSELF = """
import os
os.chdir(os.environ["POLYAXON_RUN_OUTPUTS_PATH"])
os.mkdir("checkpoints")
with open("checkpoints/1.tmp", "w") as file:
    file.write("weights")
    os.fsync(file.fileno())
os.rename("checkpoints/1.tmp", "checkpoints/1")
open("log", "w").write("one")
open("log", "a").write(" two")
os.symlink("checkpoints/1", "last")
made = [os.lstat(name) for name in ("checkpoints", "checkpoints/1", "log", "last")]
print(os.getuid(), {status.st_uid for status in made}, {status.st_gid for status in made})
"""


@pytest.mark.parametrize(
    ("context", "group"),
    [({}, USER), ({"fsGroup": GROUP}, GROUP), ({"runAsUser": USER}, 0)],
    ids=["image", "group", "user"],
)
def test_an_image_with_a_user_of_its_own(
    tmp_path: Path, clouds: Clouds, context: Json, group: int
) -> None:
    """``USER 1000:1000`` in the image, with different security contexts of the pod."""
    command = ["python3", "-c", SAVES_AS_ITSELF]
    with pod_of(tmp_path, clouds, command=command, context=context) as pod:
        assert pod[EXPERIMENT].wait() == 0, pod[EXPERIMENT].logs()
        assert pod[EXPERIMENT].logs() == f"{USER} {{{USER}}} {{{group}}}\n"
        assert pod.stop_sidecars() == {SIDECAR: 0}, pod[SIDECAR].logs()
        assert sorted(clouds.saved()) == ["checkpoints/1", "last.rclonelink", "log"]
        everything_is_gone(pod)
