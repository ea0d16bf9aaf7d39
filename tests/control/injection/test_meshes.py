"""Pods of Istio and Linkerd: the sidecar starts after their proxy and ends before it.

The manifests `mesh-*.yaml` have the containers that the two injectors add, each where it puts them.
Istio moves its own to the front; Linkerd appends. No mesh runs here.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

import sidecar.cli.control  # noqa: F401 - its commands
from sidecar.cli.group import cli
from sidecar.control.injection.inject import inject
from sidecar.control.injection.sidecar_container import Injection
from tests.control.injection.golden import CATALOGUE, FOLDER, IMAGE, catalogue, expected, given
from tests.support.servers import REPOSITORY

Pod = dict[str, Any]
INJECTION = Injection(image=IMAGE)
MESHES = {
    "mesh-istio": ["istio-init", "istio-proxy"],
    "mesh-istio-cni": ["istio-validation", "istio-proxy"],
    "mesh-linkerd": ["linkerd-init", "linkerd-proxy"],
    "mesh-linkerd-cni": ["linkerd-network-validator", "linkerd-proxy"],
}


def names(pod: Pod) -> list[str]:
    return [container["name"] for container in pod["spec"].get("initContainers", [])]


def sidecar_of(pod: Pod) -> Pod:
    [found] = [c for c in pod["spec"]["initContainers"] if c["name"] == "mount-sidecar"]
    return dict(found)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_sidecar_is_between_the_proxy_and_what_uses_its_mounts(mesh: str) -> None:
    pod = yaml.safe_load(expected(mesh).read_text())
    others = [name for name in names(yaml.safe_load(given(mesh))) if name not in MESHES[mesh]]
    assert names(pod) == [*MESHES[mesh], "mount-sidecar", *others]
    for container in pod["spec"]["initContainers"]:
        mounts = [mount["name"] for mount in container.get("volumeMounts", [])]
        mine = any(name.startswith("mount-sidecar-") for name in mounts)
        assert mine == (container["name"] not in MESHES[mesh])


@pytest.mark.parametrize("mesh", MESHES)
def test_no_probe_goes_through_the_proxy(mesh: str) -> None:
    sidecar = sidecar_of(yaml.safe_load(expected(mesh).read_text()))
    for probe in ("startupProbe", "livenessProbe"):
        assert "exec" in sidecar[probe]
    assert sidecar["ports"][0]["containerPort"] == 9464  # for metrics


def test_before_a_proxy_that_is_an_ordinary_container_nothing_is_redirected() -> None:
    pod = yaml.safe_load(expected("mesh-istio-ordinary").read_text())
    assert names(pod) == ["mount-sidecar", "prepare", "istio-init"]
    assert "volumeMounts" not in pod["spec"]["containers"][1]


# --- webhooks in any order -----------------------------------------------------------------------


def ours(pod: Pod) -> Pod:
    return inject(pod, catalogue(), INJECTION)


def webhook_of(mesh: str) -> Callable[[Pod], Pod]:
    """A mesh's webhook: it adds its containers and volumes once, where it puts them."""
    model = yaml.safe_load(given(mesh))["spec"]
    mine = [c for c in model["initContainers"] if c["name"] in MESHES[mesh]]

    def call(pod: Pod) -> Pod:
        if MESHES[mesh][0] in names(pod):
            return pod
        pod = copy.deepcopy(pod)
        there = pod["spec"].get("initContainers", [])
        appends = mesh.startswith("mesh-linkerd")
        pod["spec"]["initContainers"] = [*there, *mine] if appends else [*mine, *there]
        pod["spec"]["volumes"] = [*pod["spec"].get("volumes", []), *model.get("volumes", [])]
        return pod

    return call


def admitted(pod: Pod, webhooks: Sequence[Callable[[Pod], Pod]]) -> Pod:
    """As an API server does: each in turn, and those once more after which the pod has changed."""
    seen = {}
    for webhook in webhooks:
        pod = webhook(pod)
        seen[webhook] = copy.deepcopy(pod)
    for webhook in webhooks:
        if seen[webhook] != pod:
            pod = webhook(pod)
    return pod


@pytest.mark.parametrize("mesh", MESHES)
def test_webhooks_in_any_order_make_the_same_pod(mesh: str) -> None:
    pod = yaml.safe_load(given("init-containers"))
    pod["spec"]["initContainers"][0]["name"] = "prepare"
    made = [admitted(pod, order) for order in itertools.permutations([ours, webhook_of(mesh)])]
    for one in made:
        assert names(one)[:3] == [*MESHES[mesh], "mount-sidecar"]
        assert "prepare" in names(one)[3:]
        assert ours(one) is one
    assert made[0]["spec"]["initContainers"] == made[1]["spec"]["initContainers"]
    assert made[0]["spec"]["containers"] == made[1]["spec"]["containers"]


def test_probes_that_the_mesh_has_rewritten_are_ours_again() -> None:
    """Istio answers an application's HTTP probes itself, and has the kubelet ask its own port."""
    pod = webhook_of("mesh-istio")(ours(yaml.safe_load(given("pod"))))
    check = {"path": "/app-health/mount-sidecar/livez", "port": 15020}
    sidecar_of(pod)["livenessProbe"]["httpGet"] = check
    again = ours(pod)
    assert "httpGet" not in sidecar_of(again)["livenessProbe"]
    assert ours(again) is again


def test_a_mesh_does_not_keep_another_sidecar() -> None:
    pod = webhook_of("mesh-istio")(ours(yaml.safe_load(given("pod"))))
    sidecar = next(c for c in pod["spec"]["initContainers"] if c["name"] == "mount-sidecar")
    sidecar["image"] = "another:1"
    assert sidecar_of(ours(pod))["image"] == IMAGE


def test_files_belong_to_the_experiment_and_not_to_a_proxy_that_stands_first() -> None:
    pod = yaml.safe_load(given("pod"))
    pod["spec"]["containers"][0]["securityContext"] = {"runAsUser": 1000}
    alone = ours(pod)
    proxy = {"name": "istio-proxy", "image": "p", "securityContext": {"runAsUser": 1337}}
    pod["spec"]["containers"].insert(0, proxy)
    assert ours(pod)["metadata"] == alone["metadata"]


def test_the_webhook_is_asked_again_after_others() -> None:
    path = REPOSITORY / "manifests/components/webhook/configuration.yaml"
    [webhook] = yaml.safe_load(path.read_text())["webhooks"]
    assert webhook["reinvocationPolicy"] == "IfNeeded"


# --- what `sidecar inject` says --------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mesh-istio", "Pod train: `istio-proxy` starts before the sidecar, and ends after it"),
        ("mesh-linkerd-cni", "Pod train: `linkerd-proxy` starts before the sidecar, and ends"),
        ("mesh-istio-ordinary", "`istio-proxy` is an ordinary container, and ends before the"),
        ("pod", ""),
    ],
)
def test_inject_says_it(name: str, said: str) -> None:
    arguments = ["inject", "--catalogue", str(CATALOGUE), "-f", str(FOLDER / f"{name}.yaml")]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0
    assert said in result.stderr
    assert bool(result.stderr) == bool(said)


@pytest.mark.parametrize(
    "metadata",
    [
        {"labels": {"sidecar.istio.io/inject": "true"}},
        {"annotations": {"linkerd.io/inject": "enabled"}},
    ],
)
def test_inject_says_what_a_mesh_that_comes_later_must_be(metadata: Pod) -> None:
    pod = yaml.safe_load(given("pod"))
    for key, value in metadata.items():
        pod["metadata"].setdefault(key, {}).update(value)
    arguments = ["inject", "--catalogue", str(CATALOGUE)]
    result = CliRunner().invoke(cli, arguments, input=yaml.safe_dump(pod))
    assert "its proxy must be a native sidecar" in result.stderr
