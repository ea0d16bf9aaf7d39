"""`sidecar inject` as users run it, with one line for an error."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from sidecar.cli.main import main
from tests.control.injection.golden import CATALOGUE, IMAGE, expected, given

HEAD = "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {ANNOTATIONS}}\nspec:\n"


def sidecar_inject(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", "inject", "--catalogue", str(CATALOGUE)]
    return subprocess.run(
        [*command, *arguments], input=text, capture_output=True, text=True, timeout=60, check=False
    )


def test_from_standard_input_to_standard_output() -> None:
    done = sidecar_inject(given("several-documents"), "--image", IMAGE)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected("several-documents").read_text()


def test_without_native_sidecars() -> None:
    done = sidecar_inject(given("no-native"), "--image", IMAGE, "--no-native", "-f", "-")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == expected("no-native").read_text()


def pod(spec: str, annotations: str = "mount-sidecar.io/outputs: models") -> str:
    return HEAD.replace("ANNOTATIONS", annotations) + f"  {spec}\n"


ONE = "containers: [{name: main, image: i}]"
HERE = "standard input: Pod p: "
WRONG = {
    "SC1013 POD_UNSUPPORTED: " + HERE + "the pod is for Windows nodes; FUSE mounts need Linux": pod(
        f"{{nodeSelector: {{kubernetes.io/os: windows}}, {ONE}}}"
    ),
    "SC1013 POD_UNSUPPORTED: " + HERE + "the pod has `hostUsers: false`; remove it: mounts reach "
    "the other containers only from the node's user namespace": pod(f"{{hostUsers: false, {ONE}}}"),
    "SC1014 POD_CONFLICT: " + HERE + "a container of the pod is named `mount-sidecar`; rename it": (
        pod("containers: [{name: mount-sidecar, image: i}]")
    ),
    "SC1014 POD_CONFLICT: "
    + HERE
    + "container `main` mounts `w` at `/outputs/archive`, and outputs "
    "volume `archive` needs `/outputs/archive`; mount it elsewhere": pod(
        "{containers: [{name: main, image: i, volumeMounts: [{name: w, mountPath: "
        "/outputs/archive/}]}], volumes: [{name: w, emptyDir: {}}]}",
        "mount-sidecar.io/outputs: archive",
    ),
    "SC1014 POD_CONFLICT: "
    + HERE
    + "container `main` mounts `w` at `/mnt/persistence/data/images`, "
    "and the sidecar needs `/mnt/persistence`; mount it elsewhere": pod(
        "{containers: [{name: main, image: i, volumeMounts: [{name: w, mountPath: "
        "/mnt/persistence/data/images}]}], volumes: [{name: w, emptyDir: {}}]}"
    ),
    "SC1014 POD_CONFLICT: "
    + HERE
    + "the pod has the claim `team` read-only as its volume `t`, and "
    "data volume `shared` is writable; remove `readOnly` there, or add it to the catalogue": pod(
        "{containers: [{name: main, image: i}], volumes: [{name: t, persistentVolumeClaim: "
        "{claimName: team, readOnly: true}}]}"
    ),
    "SC1015 ANNOTATION_INVALID: "
    + HERE
    + "unknown annotation `mount-sidecar.io/datas` (did you mean "
    "`data`?); known are: data, outputs, run, options, paths, port, cpu-request, cpu-limit, "
    "memory-request, memory-limit, ephemeral-storage-limit": pod(
        ONE, 'mount-sidecar.io/datas: "[]"'
    ),
    "SC1015 ANNOTATION_INVALID: "
    + HERE
    + "annotation `mount-sidecar.io/data`: must be a JSON list of "
    "names; write mount-sidecar.io/data: '[\"NAME\"]'": pod(ONE, "mount-sidecar.io/data: images"),
    "SC1015 ANNOTATION_INVALID: " + HERE + "annotation `mount-sidecar.io/port`: must be a port "
    "from 1 to 65535, or `none`": pod(ONE, "mount-sidecar.io/port: '65536'"),
    "SC1014 POD_CONFLICT: " + HERE + "annotation `mount-sidecar.io/port`: a container of the pod "
    "has the port 80; choose another one": pod(
        "{containers: [{name: main, image: i, ports: [{containerPort: 80}]}]}",
        "mount-sidecar.io/port: '80'",
    ),
    "SC1015 ANNOTATION_INVALID: " + HERE + "annotation `mount-sidecar.io/memory-limit`: is no "
    "Kubernetes quantity; such as `500m` or `2Gi`": pod(ONE, "mount-sidecar.io/memory-limit: lots"),
    "SC1015 ANNOTATION_INVALID: " + HERE + "annotation `mount-sidecar.io/memory-limit`: 110Mi is "
    "below the 320Mi that a sidecar with 3 bucket(s) needs": pod(
        ONE, "mount-sidecar.io/memory-limit: 110Mi"
    ),
    "SC1015 ANNOTATION_INVALID: " + HERE + "annotation `mount-sidecar.io/ephemeral-storage-limit`: "
    "leaves no room to write to 1 bucket(s); at least 344Mi": pod(
        ONE,
        "mount-sidecar.io/outputs: models, mount-sidecar.io/ephemeral-storage-limit: 100Mi",
    ),
    "SC1020 VOLUME_UNKNOWN: "
    + HERE
    + "the pod's annotations.data[0]: no data volume is named `image` "
    "(did you mean `images`?); the catalogue declares: images, labels, shared, node": pod(
        ONE, "mount-sidecar.io/data: '[\"image\"]'"
    ),
    "SC1026 RUN_PATH_INVALID: " + HERE + "the run's path: `../x` has a part that is `..`": pod(
        ONE, "mount-sidecar.io/run: ../x"
    ),
    "SC1016 SPEC_TOO_LARGE: "
    + HERE
    + "the pod's annotations and its spec of 5 volumes take 296 KiB "
    "of the 256 that Kubernetes keeps; select fewer volumes with the annotation "
    "`mount-sidecar.io/data`": pod(ONE, f"x: {'x' * 300_000}"),
    "SC1012 MANIFEST_INVALID: " + HERE + "pod.spec.containers: is empty": pod("containers: []"),
    "SC1012 MANIFEST_INVALID: " + HERE + "pod.spec.containers: must be a list of mappings": pod(
        "containers: main"
    ),
    "SC1012 MANIFEST_INVALID: "
    + HERE
    + "container `main`.volumeMounts: must be a list of mappings": (
        pod("containers: [{name: main, volumeMounts: [x]}]")
    ),
    "SC1012 MANIFEST_INVALID: " + HERE + "spec.containers.ports.containerPort: must be a whole "
    "number from 0": pod("containers: [{name: c, image: i, ports: [{containerPort: [1]}]}]"),
    "SC1012 MANIFEST_INVALID: " + HERE + "pod.spec.terminationGracePeriodSeconds: must be a whole "
    "number from 0": pod(f"{{terminationGracePeriodSeconds: soon, {ONE}}}"),
    "SC1012 MANIFEST_INVALID: standard input: Job j: Job.spec.template: is missing": (
        "{kind: Job, metadata: {name: j}, spec: {}}"
    ),
    "SC1012 MANIFEST_INVALID: standard input: a document is no Kubernetes object; "
    "it has no `kind`": "[1, 2]",
    "SC1012 MANIFEST_INVALID: standard input: line 1: not valid YAML: expected ',' or '}', but got "
    "'<stream end>'": "{kind: Pod",
    "SC1012 MANIFEST_INVALID: standard input: holds no pod; kinds that have one: Pod, PodTemplate, "
    "Job, CronJob, Deployment, StatefulSet, DaemonSet, ReplicaSet, ReplicationController, and "
    "lists of them": "{apiVersion: v1, kind: Service, metadata: {name: s}}",
}


@pytest.mark.parametrize(("line", "text"), WRONG.items(), ids=range(len(WRONG)))
def test_one_line_for_what_cannot_be(
    line: str, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run main() in this process: two dozen interpreters would be slow."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert main(["inject", "--catalogue", str(CATALOGUE)]) == 2
    assert capsys.readouterr() == ("", f"error {line}\n")


def test_init_containers_need_native_sidecars() -> None:
    done = sidecar_inject(given("init-containers"), "--no-native")
    assert done.returncode == 2
    assert done.stderr.startswith("error SC1013 POD_UNSUPPORTED: standard input: Pod train: ")


def test_a_bucket_with_a_mount_path_needs_native_sidecars() -> None:
    done = sidecar_inject(given("sub-path"), "--no-native")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error SC1013 POD_UNSUPPORTED: standard input: Pod train: bucket "
    )
