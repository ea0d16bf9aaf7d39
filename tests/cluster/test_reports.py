"""What an experiment can do with the token that its sidecar reports with: nothing that hurts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from sidecar.mounter.reporting.event_recorder import REPEAT_S, EventRecorder, PodReference
from sidecar.mounter.reporting.pod_api import PodApi
from sidecar.mounter.reporting.pod_reports import CONDITION, PodCondition, Report
from tests.cluster.conftest import ACCOUNT, NAMESPACE
from tests.support.cluster import MANIFESTS, Cluster, Json, Refused, find, kustomize

REPORT = Report("StoreFails", "SC1045 UNAVAILABLE: volume data/d")
TRUE = PodCondition("True", "Mounted", "1 volume(s) are usable")


def pod(name: str, account: str = ACCOUNT) -> Json:
    """One that is never started: only its object matters."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "serviceAccountName": account,
            "schedulingGates": [{"name": "example.com/never"}],
            "containers": [{"name": "main", "image": "none"}],
        },
    }


class Experiment(NamedTuple):
    """A pod, and the API as it looks to whoever has the pod's token."""

    pod: Json
    api: Cluster

    @property
    def identity(self) -> PodReference:
        metadata = self.pod["metadata"]
        return PodReference(metadata["name"], NAMESPACE, metadata["uid"], "node")

    def patch_status(self, name: str, patch: Json) -> None:
        self.api.patch_pod_status(NAMESPACE, name, patch)


def token(cluster: Cluster, pod: Json) -> str:
    """What a kubelet would mount into the pod."""
    metadata, account = pod["metadata"], pod["spec"]["serviceAccountName"]
    bound = f"--bound-object-name={metadata['name']}", f"--bound-object-uid={metadata['uid']}"
    arguments = "create", "token", account, "-n", NAMESPACE, "--bound-object-kind=Pod"
    return cluster.kubectl(*arguments, *bound).strip()


@pytest.fixture
def make(policies: Cluster, tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    made = []

    def experiment(name: str, account: str = ACCOUNT) -> Experiment:
        created = policies.create(pod(name, account))
        made.append(created)
        folder = tmp_path / name
        folder.mkdir()
        return Experiment(created, policies.with_token(token(policies, created), folder))

    yield experiment
    policies.delete(made)


@pytest.fixture
def train(make: Callable[..., Experiment]) -> Experiment:
    return make("train")


def conditions(cluster: Cluster, name: str) -> dict[str, Json]:
    found = cluster.get("-n", NAMESPACE, "pod", name)["status"].get("conditions", [])
    return {condition["type"]: condition for condition in found}


def events(cluster: Cluster, uid: str) -> list[Json]:
    selector = f"--field-selector=involvedObject.uid={uid},reportingComponent=mount-sidecar"
    found: list[Json] = cluster.get("-n", NAMESPACE, "events", selector)["items"]
    return found


@contextmanager
def recorder(experiment: Experiment) -> Iterator[EventRecorder]:
    api = PodApi(experiment.api.service_account())
    yield EventRecorder(experiment.identity, api)
    api.close()


def test_the_sidecar_s_reports_arrive(policies: Cluster, train: Experiment) -> None:
    with recorder(train) as reports:
        reports.set_condition(TRUE)
        reports.add(REPORT)
        reports.send(0.0)
        assert conditions(policies, "train")[CONDITION]["status"] == "True"
        reports.set_condition(PodCondition("False", "StoreFails", REPORT.message))
        reports.add(REPORT)
        reports.send(REPEAT_S + 1)
    found = conditions(policies, "train")
    assert found[CONDITION]["reason"] == "StoreFails"
    assert found["PodScheduled"]["reason"] == "SchedulingGated"  # the scheduler's own
    sent = events(policies, train.identity.uid)
    assert sorted(event["count"] for event in sent) == [1, 2]


TAKEN_OVER: dict[str, Json] = {
    "address": {"status": {"podIP": "10.1.2.3", "podIPs": [{"ip": "10.1.2.3"}]}},
    "phase": {"status": {"phase": "Succeeded"}},
    "message": {"status": {"message": "all is well", "reason": "Evicted"}},
    "ready": {"status": {"conditions": [{"type": "Ready", "status": "True"}]}},
    "disrupted": {"status": {"conditions": [{"type": "DisruptionTarget", "status": "True"}]}},
    "look-alike": {"status": {"conditions": [{"type": f"{CONDITION}y", "status": "True"}]}},
    "scheduled": {"status": {"conditions": [{"type": "PodScheduled", "$patch": "delete"}]}},
    "containers": {
        "status": {
            "containerStatuses": [
                {
                    "name": "main",
                    "image": "",
                    "imageID": "",
                    "ready": True,
                    "restartCount": 0,
                    "state": {"terminated": {"exitCode": 0}},
                }
            ]
        }
    },
    "node": {"status": {"nominatedNodeName": "node-2"}},
    "labels": {"metadata": {"labels": {"app": "database"}}},
    "annotations": {"metadata": {"annotations": {"mount-sidecar.io/spec": "{}"}}},
    "finalizers": {"metadata": {"finalizers": ["example.com/never"]}},
}


@pytest.mark.parametrize("name", TAKEN_OVER)
def test_nothing_else_of_the_pod_can_be_changed(
    policies: Cluster, train: Experiment, name: str
) -> None:
    before = policies.get("-n", NAMESPACE, "pod", "train")
    condition = {"type": CONDITION, "status": "True"}
    patch = copy.deepcopy(TAKEN_OVER[name])
    patch.setdefault("status", {}).setdefault("conditions", []).append(condition)
    with pytest.raises(Refused, match=r"a sidecar (changes nothing|sets the condition)"):
        train.patch_status("train", patch)
    assert policies.get("-n", NAMESPACE, "pod", "train") == before


def test_another_pod_s_status_cannot_be_changed(
    policies: Cluster, make: Callable[..., Experiment]
) -> None:
    train, other = make("train"), make("other")
    before = policies.get("-n", NAMESPACE, "pod", "other")
    with pytest.raises(Refused, match="about its own pod only"):
        train.patch_status(
            "other", {"status": {"conditions": [{"type": CONDITION, "status": "False"}]}}
        )
    assert policies.get("-n", NAMESPACE, "pod", "other") == before
    other.patch_status("other", {"status": {"conditions": [{"type": CONDITION, "status": "True"}]}})


def test_a_token_of_no_pod_reports_nothing(
    policies: Cluster, train: Experiment, tmp_path: Path
) -> None:
    loose = policies.kubectl("-n", NAMESPACE, "create", "token", ACCOUNT).strip()
    anybody = Experiment(train.pod, policies.with_token(loose, tmp_path))
    with pytest.raises(Refused, match="about its own pod only"):
        anybody.patch_status(
            "train", {"status": {"conditions": [{"type": CONDITION, "status": "True"}]}}
        )


def event(uid: str, *, kind: str = "Pod", component: str = "mount-sidecar") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "train.", "namespace": NAMESPACE},
        "involvedObject": {"kind": kind, "namespace": NAMESPACE, "name": "train", "uid": uid},
        "reason": "Test",
        "message": "a message",
        "type": "Warning",
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": "train",
    }


def test_events_are_about_the_own_pod_and_in_the_own_name(
    policies: Cluster, make: Callable[..., Experiment]
) -> None:
    train, other = make("train"), make("other")
    own, foreign = train.identity.uid, other.identity.uid
    train.api.create(event(own))
    for refused, why in (
        (event(foreign), "own pod only"),
        (event(own, kind="Job"), "own pod only"),
        (event(own, component="kubelet"), "own name only"),
    ):
        with pytest.raises(Refused, match=why):
            train.api.create(refused)


def test_it_may_read_and_change_nothing(train: Experiment) -> None:
    allowed = train.api.kubectl("-n", NAMESPACE, "auth", "can-i", "--list", "--no-headers")
    rights = {line.split()[0]: line.rpartition("[")[2] for line in allowed.splitlines()}
    # Everybody's: reviews of oneself, and what an API server says of itself.
    others = {name for name in rights if name.startswith(("self", "["))}
    assert {name: verbs for name, verbs in rights.items() if name not in others} == {
        "events": "create]",
        "pods/status": "patch]",
        "reports.mount-sidecar.io": "bounded]",
    }


def test_others_who_set_conditions_are_not_hindered(
    policies: Cluster, make: Callable[..., Experiment]
) -> None:
    """Readiness gates: somebody's controller, with the right from somebody's role."""
    labels = {"namespace": NAMESPACE, "name": "gates"}
    gates: list[Json] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": labels},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": labels,
            "rules": [{"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": labels,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "Role",
                "name": "gates",
            },
            "subjects": [{"kind": "ServiceAccount", **labels}],
        },
    ]
    policies.apply(gates)
    try:
        controller = make("controller", "gates")
        make("train")
        opened = {"status": {"conditions": [{"type": "example.com/gate", "status": "True"}]}}
        controller.patch_status("train", opened)
        assert conditions(policies, "train")["example.com/gate"]["status"] == "True"
    finally:
        policies.delete(gates)


def test_without_the_component_there_are_events_only(
    policies: Cluster,
    make: Callable[..., Experiment],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The role of manifests/base, under another name, for another service account."""
    role = find(kustomize(MANIFESTS / "base"), "ClusterRole", "mount-sidecar-reporter")
    role["metadata"] = {"name": "mount-sidecar-test-plain"}
    account = {"namespace": NAMESPACE, "name": "plain"}
    plain: list[Json] = [
        role,
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": account,
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "mount-sidecar-test-plain",
            },
            "subjects": [{"kind": "ServiceAccount", **account}],
        },
    ]
    policies.apply(plain)
    try:
        train = make("train", "plain")
        with recorder(train) as reports:
            reports.set_condition(TRUE)
            reports.add(REPORT)
            reports.send(0.0)
            reports.send(time.monotonic())
        assert [event["reason"] for event in events(policies, train.identity.uid)] == ["StoreFails"]
        assert CONDITION not in conditions(policies, "train")
        [record] = caplog.records
        assert record.message == "no condition will be reported"
        why = record.__dict__["fields"]["why"]
        assert 'User "system:serviceaccount:experiments:plain" cannot patch' in why
        with pytest.raises(Refused, match='cannot patch resource "pods/status"'):
            train.patch_status("train", {"status": {"podIP": "10.1.2.3"}})
    finally:
        policies.delete(plain)
