"""Prometheus scrapes the pod of a run; alert rules and dashboard are about what it finds.

``DASHBOARD_PICTURE=docs/dashboard.png`` in the environment draws the panels (needs matplotlib,
see `scripts/install.sh bench`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from sidecar.contract.spec import HTTP_PORT
from tests.pods.runs import EXPERIMENT, SIDECAR, Clouds, events, pod_of, status_of
from tests.support.dashboard import DASHBOARD, Query, Series, ask, draw, queries
from tests.support.pods import Pod
from tests.support.servers import (
    HOST,
    REPOSITORY,
    AzureServer,
    GcsServer,
    MinioServer,
    S3Server,
    Server,
    find_program,
)
from tests.support.waiting import wait_until

RULES = REPOSITORY / "manifests/components/prometheus-rule/prometheus-rule.yaml"
SCRAPE_INTERVAL_S = 0.5
# Panels that would show zeros, or nothing, on an uneventful day.
EVENTFUL = [
    "Exchanged with the store",
    "Requests sent again",
    "Errors of programs",
    "Not saved yet",
    "Workers started again",
]

Answer = tuple[Query, list[Series]]


class Prometheus(Server):
    """Debian's Prometheus, scraping one port.

    Args:
        labels: what a PodMonitor would add.
    """

    def __init__(self, directory: Path, port: int, labels: dict[str, str]) -> None:
        super().__init__(directory)
        target = {"targets": [f"{HOST}:{port}"], "labels": labels}
        settings = {
            "global": {"scrape_interval": f"{int(SCRAPE_INTERVAL_S * 1000)}ms"},
            "scrape_configs": [{"job_name": "pods", "static_configs": [target]}],
        }
        (directory / "prometheus.yml").write_text(yaml.safe_dump(settings))

    def command(self) -> Sequence[str]:
        """In the foreground, with its data below its directory."""
        return [
            find_program("prometheus", install="scripts/install.sh test"),
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={HOST}:{self.port}",
            "--log.level=warn",
        ]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.endpoint}/-/ready", timeout=5):
                return True
        except OSError:  # a 503 too: it listens before it has read its data
            return False

    def value(self, expression: str) -> float:
        """An instant query of one series; 0 where there is none yet."""
        address = f"{self.endpoint}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return float(result[0]["value"][1]) if result else 0.0

    def answers(self, start_s: float) -> list[Answer]:
        """What every query of the dashboard returns, from ``start_s`` (since 1970) until now."""
        end_s = time.time()
        return [(query, ask(self.endpoint, query, start_s, end_s)) for query in queries("5s")]

    def wait_for(self, expression: str, pod: Pod) -> None:
        """Return when the expression is above 0."""
        wait_until(
            lambda: self.value(expression) > 0,
            lambda: f"{expression}: {pod[SIDECAR].logs()}",
            poll_s=0.1,
        )


def wait_for_experiment(done: Callable[[], bool], pod: Pod) -> None:
    one = pod[EXPERIMENT]
    wait_until(done, one.logs, running=lambda: one.running, poll_s=0.1)


def not_shown(answers: list[Answer]) -> list[str]:
    """Queries that return nothing, and panels that show none of what happened."""
    shown = {query.panel for query, found in answers for series in found if max(series.values) > 0}
    empty = [query.expression for query, found in answers if not found]
    return empty + [panel for panel in EVENTFUL if panel not in shown]


def promtool(*arguments: str | Path, cwd: Path | None = None) -> str:
    program = find_program("promtool", install="scripts/install.sh test")
    result = subprocess.run(
        [program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The PrometheusRule's rules as a file of rules."""
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(RULES.read_text())["spec"]))
    return path


def alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["spec"]["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def test_the_rules_are_rules(rules: Path) -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", rules)


def test_each_alert_fires_when_it_should_and_not_otherwise(rules: Path) -> None:
    cases = rules.with_name("alerts.yaml")
    shutil.copy(Path(__file__).with_name("alerts.yaml"), cases)
    assert "SUCCESS" in promtool("test", "rules", cases.name, cwd=rules.parent)


def test_each_alert_is_tried_both_ways() -> None:
    tests = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    fired = {check["alertname"] for check in checks if check["exp_alerts"]}
    silent = {check["alertname"] for check in checks if not check["exp_alerts"]}
    assert fired == silent == set(alerts())


def test_rules_and_dashboard_name_metrics_that_the_product_has() -> None:
    source = (REPOSITORY / "sidecar/metrics.py").read_text()
    known = set(re.findall(r"mount_sidecar_[a-z_]+[a-z]", source))
    for text in (RULES.read_text(), DASHBOARD.read_text()):
        for name in re.findall(r"mount_sidecar_[a-z_]+[a-z]", text):
            plain = re.sub(r"_(bucket|count|sum|total)$", "", name)
            assert {name, plain} & known, name


@pytest.fixture
def fragile_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A server that the test stops for a moment."""
    with MinioServer(tmp_path_factory.mktemp("fragile")) as server:
        yield server


@pytest.mark.usefixtures("images")
def test_every_query_of_the_dashboard_returns_data_of_a_run(
    tmp_path: Path, fragile_s3: S3Server, gcs_server: GcsServer, azure_server: AzureServer
) -> None:
    """A run with what the panels are about: a file not saved yet, an outage, a worker's death."""
    clouds = Clouds(fragile_s3, gcs_server, azure_server, epochs=25)
    script = """
    until test -e /data/claim/go; do sleep 0.1; done
    python3 /experiment/train.py
    exec python3 -c '
import os, time
path = os.environ["POLYAXON_RUN_OUTPUTS_PATH"]
file = open(path + "/model.bin", "wb", buffering=0)
file.write(os.urandom(3_000_000))
os.path.exists(path + "/absent")
print("trained", flush=True)
while not os.path.exists("/data/claim/enough"):
    os.path.exists(f"{path}/absent-{time.monotonic()}")
    time.sleep(0.1)
'
    """
    with pod_of(tmp_path, clouds, command=["sh", "-ec", script]) as pod:
        port = pod.network.bring_out(HTTP_PORT)
        labels = {"namespace": "runs", "pod": "experiment", "container": SIDECAR}
        with Prometheus(tmp_path / "prometheus", port, labels) as prometheus:
            started_s = time.time()
            prometheus.wait_for("mount_sidecar_ready", pod)
            (tmp_path / "claim/go").touch()
            wait_for_experiment(
                lambda: any(event["event"] == "epoch" for event in events(pod[EXPERIMENT])), pod
            )
            fragile_s3.stop()
            # Not the first retry alone: what appears between two scrapes has no rate.
            prometheus.wait_for("sum(rate(mount_sidecar_store_retries_total[1m]))", pod)
            fragile_s3.start()
            wait_for_experiment(lambda: "trained" in pod[EXPERIMENT].logs(), pod)
            pod[SIDECAR].execute("sh", "-c", f"kill -9 {status_of(pod)['runs']['worker_pid']}")
            answers: list[Answer] = []

            def all_is_shown() -> bool:
                answers[:] = prometheus.answers(started_s)
                return not not_shown(answers)

            wait_until(all_is_shown, lambda: not_shown(answers), poll_s=0.5)
            (tmp_path / "claim/enough").touch()
            assert pod[EXPERIMENT].wait() == 0, pod[EXPERIMENT].logs()
            if picture := os.environ.get("DASHBOARD_PICTURE"):
                draw(answers, Path(picture))
            assert pod.stop_sidecars() == {SIDECAR: 0}, pod[SIDECAR].logs()
