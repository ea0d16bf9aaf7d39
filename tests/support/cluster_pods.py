"""Pods of a real cluster, as `kubectl` shows them."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from sidecar import __version__
from sidecar.contract.pod import CONTAINER_NAME as SIDECAR
from sidecar.control.injection.pod_annotations import INJECT_LABEL
from tests.support.cluster import Cluster, Json, Refused
from tests.support.waiting import wait_until

NAMESPACE = "mount-sidecar-tests"
ACCOUNT = "experiment"
MAIN = "main"
_TIMEOUT_S = 120.0


def image(prefix: str, name: str) -> str:
    """An image of this release, below a registry's ``prefix``."""
    return f"{prefix}/{name}:{__version__}"


class ClusterPod:
    """One pod.

    Args:
        cluster: its administrator.
        document: the pod as the API server has it.
    """

    def __init__(self, cluster: Cluster, document: Json) -> None:
        self.cluster = cluster
        self.name: str = document["metadata"]["name"]
        self.namespace: str = document["metadata"]["namespace"]
        self.uid: str = document["metadata"]["uid"]

    @classmethod
    def create(
        cls, cluster: Cluster, document: Json, sidecar_env: Mapping[str, str] | None = None
    ) -> Self:
        """Create it.

        Args:
            document: as its author writes it.
            sidecar_env: additional variables for the sidecar.

        Raises:
            Refused: with the API server's words.
        """
        if sidecar_env:
            document = _with_environment(cluster.dry_run(document), sidecar_env)
        return cls(cluster, cluster.create(document))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if value is not None:
            value.add_note(self.described())
        self.delete(grace_s=1)

    def kubectl(self, *arguments: str) -> str:
        """kubectl in the pod's namespace; what it prints."""
        return self.cluster.kubectl("-n", self.namespace, *arguments)

    def get(self) -> Json:
        """The pod as it is now. Raises :class:`Refused` if it is gone."""
        return self.cluster.get("-n", self.namespace, "pod", self.name)

    @property
    def phase(self) -> str:
        """Pending, Running, Succeeded or Failed."""
        return str(self.get()["status"]["phase"])

    @property
    def is_gone(self) -> bool:
        """Whether the API server no longer has it, or has another of its name."""
        found = self.kubectl(
            "get", "pod", self.name, "--ignore-not-found", "-o", "jsonpath={.metadata.uid}"
        )
        return found != self.uid

    def status(self, container: str) -> Json:
        """The container's status: ``state``, ``lastState``, ``ready``, ``restartCount``; or {}."""
        status = self.get()["status"]
        for group in ("initContainerStatuses", "containerStatuses"):
            for found in status.get(group, []):
                if found["name"] == container:
                    return dict(found)
        return {}

    def termination_message(self, container: str = SIDECAR) -> str:
        """The message of the container's last end, or ""."""
        status = self.status(container)
        for state in ("state", "lastState"):
            ended = status.get(state, {}).get("terminated")
            if ended:
                return str(ended.get("message", ""))
        return ""

    def conditions(self) -> dict[str, Json]:
        """By type."""
        found = self.get()["status"].get("conditions", [])
        return {condition["type"]: condition for condition in found}

    def events(self) -> list[tuple[str, str]]:
        """(Reason, message) of each event about the pod."""
        selector = f"--field-selector=involvedObject.uid={self.uid}"
        events = self.cluster.get("-n", self.namespace, "events", selector)["items"]
        return [(event["reason"], event["message"]) for event in events]

    def logs(self, container: str = MAIN, *, previous: bool = False) -> str:
        """Standard output and standard error of the container, or of the one before it."""
        options = ["--previous"] if previous else []
        return self.kubectl("logs", self.name, "-c", container, *options)

    def execute(self, *command: str, container: str = MAIN) -> str:
        """A command's standard output. Raises :class:`Refused` with its standard error."""
        return self.kubectl("exec", self.name, "-c", container, "--", *command)

    def described(self) -> str:
        """The output of `kubectl describe pod` and the logs, for a test's failure."""
        parts = []
        for arguments in (
            ("describe", "pod", self.name),
            ("logs", self.name, "--all-containers", "--prefix", "--tail=60"),
        ):
            try:
                parts.append(self.kubectl(*arguments))
            except (Refused, subprocess.TimeoutExpired) as error:
                parts.append(str(error))
        return "\n".join(parts)

    def wait_for(
        self, condition: Callable[[], object], what: str, timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Return once it holds. Raises AssertionError."""
        wait_until(condition, f"{self.name}: {what}", timeout_s)

    def wait_until_ready(self) -> None:
        """Return once every container is ready."""
        self.wait_for(lambda: self._is("Ready"), "ready")

    def wait_until_ended(self, timeout_s: float = _TIMEOUT_S) -> str:
        """The phase in which it ended."""
        ended = ("Succeeded", "Failed")
        self.wait_for(lambda: self.phase in ended, "ended", timeout_s)
        return self.phase

    def delete(self, grace_s: int | None = None, *, force: bool = False, wait: bool = True) -> None:
        """Delete it, if it is there.

        Args:
            grace_s: instead of the pod's own.
            force: with ``grace_s=0``: it is taken out of the API before the node has ended it.
            wait: return once it is gone.
        """
        options = ["--ignore-not-found", f"--wait={str(wait).lower()}"]
        options += [] if grace_s is None else [f"--grace-period={grace_s}"]
        options += ["--force"] if force else []
        self.kubectl("delete", "pod", self.name, *options)

    def _is(self, condition: str) -> bool:
        return self.conditions().get(condition, {}).get("status") == "True"


def _with_environment(document: Json, variables: Mapping[str, str]) -> Json:
    """A pod that was injected, with variables for its sidecar.

    It does not ask for the sidecar any more: the webhook would take them out.
    """
    document = copy.deepcopy(document)
    del document["metadata"]["labels"][INJECT_LABEL]
    for key in ("uid", "creationTimestamp", "managedFields"):
        document["metadata"].pop(key, None)
    document.pop("status", None)
    for group in ("initContainers", "containers"):
        for container in document["spec"].get(group, []):
            if container["name"] == SIDECAR:
                more = [{"name": name, "value": value} for name, value in variables.items()]
                container["env"] = [*container.get("env", []), *more]
    return document


def experiment(
    name: str,
    image: str,
    command: list[str],
    *,
    data: list[str] | None = None,
    outputs: str | None = None,
    run: str | None = None,
    grace_s: int = 30,
    annotations: Mapping[str, str] | None = None,
    livenessProbe: Json | None = None,  # noqa: N803 - the API's name
    **spec: object,
) -> Json:
    """A pod with one container, as its author writes it.

    Args:
        command: of the container ``main``.
        data: names of the catalogue; by default none.
        outputs, run: as the annotations of these names.
        annotations: more of them, without the prefix.
        livenessProbe: of the container.
        spec: fields of the pod's spec, instead of these.
    """
    wanted = {"data": json.dumps(data or []), **(annotations or {})}
    wanted |= {} if outputs is None else {"outputs": outputs}
    wanted |= {} if run is None else {"run": run}
    main: Json = {
        "name": MAIN,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": command,
    }
    main |= {} if livenessProbe is None else {"livenessProbe": livenessProbe}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"mount-sidecar.io/inject": "true"},
            "annotations": {f"mount-sidecar.io/{key}": text for key, text in wanted.items()},
        },
        "spec": {
            "serviceAccountName": ACCOUNT,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": grace_s,
            "containers": [main],
            **spec,
        },
    }
