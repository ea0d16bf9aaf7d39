"""The image in a pod: five kinds of volume in use by an unprivileged container, and bad days."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from sidecar import __version__
from sidecar.contract.paths import contains
from sidecar.contract.spec_rules import SYSTEM_DIRECTORIES
from sidecar.control.injection.pod_annotations import SPEC_ANNOTATION
from tests.pods.runs import (
    EXPERIMENT,
    NOTES,
    SIDECAR,
    Clouds,
    events,
    everything_is_gone,
    kill_sidecar,
    pod_of,
    status_of,
    told_saved,
    wait_for,
)
from tests.support.pods import EXPERIMENT_IMAGE, SIDECAR_IMAGE, Pod, podman
from tests.support.servers import AzureServer, GcsServer, MinioServer, S3Server

pytestmark = pytest.mark.usefixtures("images")

LOGIN_REJECTED = "SC1043 LOGIN_REJECTED"


@pytest.fixture
def long_run(s3_server: S3Server, gcs_server: GcsServer, azure_server: AzureServer) -> Clouds:
    """A run that takes long enough for something to happen meanwhile."""
    return Clouds(s3_server, gcs_server, azure_server, epochs=40)


def is_training(pod: Pod) -> bool:
    return any(event["event"] == "epoch" for event in events(pod[EXPERIMENT]))


def run_in(image: str, script: str) -> str:
    """Run a shell script in a fresh container without a network; its output.

    On a loaded machine podman may lose the output of a container that ended before it was attached
    to it. So the last line says that it is all.
    """
    options = ("run", "--rm", "--network", "none", "--entrypoint", "sh")
    for _ in range(3):
        output = podman(*options, image, "-ec", f"{script}\nprintf '\\n.'").stdout
        if output.endswith("\n."):
            return output.removesuffix("\n.")
    raise AssertionError(f"the output of `{script}` was lost three times: {output!r}")


def test_the_image_has_the_product_and_nothing_that_built_it() -> None:
    tools = run_in(SIDECAR_IMAGE, "command -v sidecar cc gcc make pip curl || true").split()
    assert tools == ["/opt/sidecar/bin/sidecar"]
    configuration = run_in(SIDECAR_IMAGE, "ls /etc/pip.conf /run/ca.crt /src 2>/dev/null || true")
    assert configuration == ""
    assert run_in(SIDECAR_IMAGE, "sidecar --version") == f"sidecar {__version__}\n"


def test_no_volume_can_be_mounted_where_the_image_finds_programs() -> None:
    """Nor where libraries look for the name of one: `~/.aws/config` may have any."""
    places = run_in(SIDECAR_IMAGE, 'echo "$PATH:$HOME"; realpath /run /var/run').split()
    assert places[-2:] == ["/run", "/run"]  # by both names in SYSTEM_DIRECTORIES
    for place in places[0].split(":"):
        assert any(contains(closed, place) for closed in SYSTEM_DIRECTORIES), place


def test_the_image_lists_what_it_holds() -> None:
    """As its own package managers say it, and by CycloneDX's schema."""
    text = run_in(SIDECAR_IMAGE, "cat /usr/share/sbom/mount-sidecar.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    listed = json.loads(text)
    assert listed["metadata"]["component"]["version"] == __version__
    parts: dict[str, set[str]] = {"deb": set(), "pypi": set()}
    for component in listed["components"]:
        kind = component["purl"].removeprefix("pkg:").partition("/")[0]
        parts[kind].add(f"{component['name']}={component['version']}")
    installed = run_in(SIDECAR_IMAGE, "dpkg-query --show --showformat='${Package}=${Version}\n'")
    assert parts["deb"] == set(installed.split())
    folders = run_in(SIDECAR_IMAGE, "cd /opt/sidecar/lib/python3*/site-packages; ls -d *.dist-info")
    assert len(parts["pypi"]) == len(folders.split())
    assert f"mount-sidecar={__version__}" in parts["pypi"]


def test_the_experiment_s_image_has_nothing_of_the_product() -> None:
    code = "import importlib.util as u; print(*map(u.find_spec, ('sidecar', 'boto3', 'fsspec')))"
    assert run_in(EXPERIMENT_IMAGE, f'python3 -c "{code}"') == "None None None\n"


def test_a_run_with_five_kinds_of_volume(tmp_path: Path, clouds: Clouds) -> None:
    with pod_of(tmp_path, clouds) as pod:
        sidecar, experiment = pod[SIDECAR], pod[EXPERIMENT]
        assert experiment.wait() == 0, experiment.logs()
        for note in NOTES.values():
            assert note in experiment.logs()
        saved = told_saved(experiment)
        assert {"model.json", "metrics.jsonl"} < set(saved)

        assert pod.stop_sidecars() == {SIDECAR: 0}, sidecar.logs()
        assert pod.termination_message(SIDECAR) == ""
        assert clouds.saved() == saved
        for key in (clouds.s3.secret_access_key, clouds.azure.account_key):
            assert key not in sidecar.logs()
        everything_is_gone(pod)


def test_the_experiment_has_directories_and_nothing_else(tmp_path: Path, clouds: Clouds) -> None:
    script = """
    id -u; grep CapEff /proc/self/status; ls /var/run/sidecar /etc/sidecar /dev/fuse
    touch /mnt/persistence/data/images/x; id > "$POLYAXON_RUN_OUTPUTS_PATH/id"
    """
    with pod_of(tmp_path, clouds, command=["sh", "-c", script]) as pod:
        experiment = pod[EXPERIMENT]
        assert experiment.wait() == 0, experiment.logs()
        said = experiment.logs()
        assert said.startswith("1000\nCapEff:\t0000000000000000\n")
        for path in ("/var/run/sidecar", "/etc/sidecar", "/dev/fuse"):
            assert f"cannot access '{path}'" in said
        assert "/mnt/persistence/data/images/x': Read-only file system" in said
        assert pod.stop_sidecars() == {SIDECAR: 0}
        assert list(clouds.saved()) == ["id"]


def test_with_a_wrong_secret_the_experiment_never_starts(tmp_path: Path, clouds: Clouds) -> None:
    secrets = clouds.secrets()
    wrong = {**clouds.s3.credentials(), "AWS_SECRET_ACCESS_KEY": "not-the-secret-key"}
    secrets["clouds"]["s3.json"] = json.dumps(wrong)
    with pod_of(tmp_path, clouds, secrets=secrets) as pod:
        assert EXPERIMENT not in pod
        assert pod[SIDECAR].wait() == 3
        message = pod.termination_message(SIDECAR)
        assert message.startswith(f"error {LOGIN_REJECTED}: volume ")
        assert f"s3://{clouds.images}" in message or f"s3://{clouds.outputs}" in message
        for text in (message, pod[SIDECAR].logs()):
            assert "not-the-secret-key" not in text
        everything_is_gone(pod)


@pytest.mark.soak
def test_a_sidecar_that_was_killed_is_started_again(tmp_path: Path, clouds: Clouds) -> None:
    """The next start saves what was not saved, and the mounts come back."""
    script = """
    out=$POLYAXON_RUN_OUTPUTS_PATH; exec 3>>"$out/log.txt"; echo before >&3; echo written
    until ls "$out" 2>&1 | grep -q endpoint; do sleep 0.1; done; echo lost
    until grep before "$out/log.txt" 2>/dev/null; do sleep 0.1; done
    echo after > "$out/after.txt"
    """
    command = ["sh", "-c", script]
    with pod_of(tmp_path, clouds, command=command) as pod:
        experiment = pod[EXPERIMENT]
        wait_for(lambda: "written" in experiment.logs(), pod)
        assert kill_sidecar(pod) == 137
        wait_for(lambda: "lost" in experiment.logs(), pod)
        pod.start_container(pod.spec["initContainers"][0])
        assert experiment.wait() == 0, experiment.logs()
        assert pod.stop_sidecars() == {SIDECAR: 0}, pod[SIDECAR].logs()
        assert sorted(clouds.saved()) == ["after.txt", "log.txt"]
        everything_is_gone(pod)


@pytest.mark.soak
def test_at_the_memory_limit_a_worker_dies_and_training_goes_on(
    tmp_path: Path, long_run: Clouds
) -> None:
    # Many small processes use memory, so that the kernel kills a larger one of ours, and then
    # free it at once: no mount can go on without memory for a worker.
    hog = """
import json, os, signal, time
with open("/var/lib/sidecar/status.json") as file:
    pids = [volume["worker_pid"] for volume in json.load(file)["volumes"] if volume["worker_pid"]]
while all(os.path.exists(f"/proc/{pid}/exe") for pid in pids):
    if os.fork() == 0:
        held = bytearray(os.urandom(1 << 20) * 12)
        time.sleep(60)
    time.sleep(0.05)
print("one is gone", flush=True)
os.killpg(0, signal.SIGKILL)  # exec made this process the leader of a group
"""
    with pod_of(tmp_path, long_run, memory="700Mi") as pod:
        sidecar, experiment = pod[SIDECAR], pod[EXPERIMENT]
        wait_for(lambda: is_training(pod), pod)
        said = sidecar.execute("python3", "-c", hog, check=False)  # It ends with SIGKILL.
        assert said == "one is gone\n"
        assert experiment.wait() == 0, experiment.logs()
        assert "SIGKILL (out of memory?)" in sidecar.logs()
        saved = told_saved(experiment)
        assert pod.stop_sidecars() == {SIDECAR: 0}, sidecar.logs()
        assert long_run.saved() == saved
        everything_is_gone(pod)


@pytest.mark.soak
def test_with_too_little_grace_it_says_what_is_not_saved(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    gcs_server: GcsServer,
    azure_server: AzureServer,
) -> None:
    # Not a shell's redirection, which closes a duplicate of the descriptor and so saves.
    script = """
import os, time
file = open(os.environ["POLYAXON_RUN_OUTPUTS_PATH"] + "/model.bin", "wb", buffering=0)
file.write(b"weights")
print("written", flush=True)
time.sleep(1000)
"""
    with MinioServer(tmp_path_factory.mktemp("silent")) as silent:
        clouds = Clouds(silent, gcs_server, azure_server)
        pod = pod_of(tmp_path, clouds, command=["python3", "-c", script])
        spec = json.loads(pod.metadata["annotations"][SPEC_ANNOTATION])
        spec["times"] |= {"grace_s": 3, "grace_margin_s": 1}
        pod.metadata["annotations"][SPEC_ANNOTATION] = json.dumps(spec)
        with pod:
            wait_for(lambda: "written" in pod[EXPERIMENT].logs(), pod)
            silent.pause()
            # The grace period is used up: the experiment still runs when the sidecar must end.
            assert pod.stop_sidecars() == {SIDECAR: 4}, pod[SIDECAR].logs()
            message = pod.termination_message(SIDECAR)
            silent.resume()
            pod[EXPERIMENT].signal("KILL")
            assert pod[EXPERIMENT].wait() == 137
            assert "SC1089 NOT_SAVED" in message
            assert "not saved: outputs/runs: " in message
            assert "model.bin" in message
            everything_is_gone(pod)


@pytest.mark.soak
def test_training_goes_on_when_a_worker_is_killed(tmp_path: Path, long_run: Clouds) -> None:
    with pod_of(tmp_path, long_run) as pod:
        sidecar, experiment = pod[SIDECAR], pod[EXPERIMENT]
        wait_for(lambda: is_training(pod), pod)
        for name in ("runs", "images"):
            sidecar.execute("sh", "-c", f"kill -9 {status_of(pod)[name]['worker_pid']}")
        assert experiment.wait() == 0, experiment.logs()
        assert status_of(pod)["runs"]["healed"] == {"resend": 1, "remount": 0}
        saved = told_saved(experiment)
        assert pod.stop_sidecars() == {SIDECAR: 0}, sidecar.logs()
        assert long_run.saved() == saved
        everything_is_gone(pod)
