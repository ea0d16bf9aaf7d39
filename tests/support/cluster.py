"""A real cluster, named by ``KUBECONFIG``, through kubectl: nothing of it is imitated."""

from __future__ import annotations

import base64
import copy
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from sidecar.contract.pod import SERVICE_ACCOUNT_VARIABLE
from tests.support.servers import REPOSITORY, find_program
from tests.support.waiting import wait_until

Json = dict[str, Any]

MANIFESTS = REPOSITORY / "manifests"
_TIMEOUT_S = 120.0


class Refused(Exception):
    """The API server's words."""


class Cluster:
    """One caller of the API.

    Args:
        kubeconfig: names the server and the caller.
    """

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl prints. Raises :class:`Refused` with its complaint."""
        program = find_program("kubectl", install="apt install kubectl")
        result = subprocess.run(
            [program, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        if result.returncode:
            raise Refused(result.stderr.strip())
        return result.stdout

    def get(self, *arguments: str) -> Json:
        """One object, or a list of them."""
        found: Json = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def create(self, document: Json) -> Json:
        """Create an object; what the API server made of it."""
        made = self.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(document))
        answer: Json = json.loads(made)
        return answer

    def dry_run(self, document: Json) -> Json:
        """What the API server would make of an object, with what its webhooks add."""
        arguments = "create", "--dry-run=server", "-f", "-", "-o", "json"
        made: Json = json.loads(self.kubectl(*arguments, stdin=json.dumps(document)))
        return made

    def patch_pod_status(self, namespace: str, name: str, patch: Json) -> None:
        """As the sidecar does it; kubectl would read the pod first, which needs another right."""
        with self._api() as api:
            method = client.CoreV1Api(api).patch_namespaced_pod_status
            method(name, namespace, patch, _preload_content=False)

    def patch_configuration(self, name: str, patch: Json) -> None:
        """A MutatingWebhookConfiguration; lists are replaced."""
        with self._api() as api:
            method = client.AdmissionregistrationV1Api(api).patch_mutating_webhook_configuration
            merge = "application/merge-patch+json"
            method(name, patch, _content_type=merge, _preload_content=False)

    @contextmanager
    def _api(self) -> Iterator[Any]:
        with config.new_client_from_config(str(self.kubeconfig)) as api:  # type: ignore[no-untyped-call]
            try:
                yield api
            except ApiException as error:
                raise Refused(json.loads(error.body or "{}")["message"]) from None

    def apply(self, documents: Iterable[Json]) -> None:
        """Create what is not there, and change what is."""
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(documents))

    def delete(self, documents: Iterable[Json]) -> None:
        """Delete, and wait until all is gone."""
        text = yaml.safe_dump_all(documents)
        self.kubectl("delete", "--ignore-not-found", "-f", "-", stdin=text)

    def with_token(self, token: str, directory: Path) -> Cluster:
        """The same server, with a service account's token."""
        view = "config", "view", "--raw", "--minify", "--flatten", "-o", "json"
        settings = json.loads(self.kubectl(*view))
        settings["users"] = [{"name": "token", "user": {"token": token}}]
        for context in settings["contexts"]:
            context["context"]["user"] = "token"
        file = directory / "kubeconfig"
        file.write_text(json.dumps(settings))
        return Cluster(file)

    def service_account(self) -> dict[str, str]:
        """The environment of a pod with this caller's token, and the files beside the kubeconfig.

        For what :meth:`with_token` gave.
        """
        settings = json.loads(self.kubeconfig.read_text())
        cluster = settings["clusters"][0]["cluster"]
        server = urlsplit(cluster["server"])
        folder = self.kubeconfig.parent
        authority = base64.b64decode(cluster["certificate-authority-data"])
        (folder / "ca.crt").write_bytes(authority)
        (folder / "token").write_text(settings["users"][0]["user"]["token"])
        return {
            "KUBERNETES_SERVICE_HOST": server.hostname or "",
            "KUBERNETES_SERVICE_PORT": str(server.port or 443),
            SERVICE_ACCOUNT_VARIABLE: str(folder),
        }

    def wait_for(
        self, condition: Callable[[], bool], what: str, timeout_s: float = _TIMEOUT_S
    ) -> None:
        """Return once it holds."""
        wait_until(condition, what, timeout_s, poll_s=0.2)


def kustomize(folder: Path) -> list[Json]:
    """The objects of a folder of manifests."""
    command = [find_program("kubectl", install="apt install kubectl"), "kustomize", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return list(yaml.safe_load_all(result.stdout))


def find(documents: list[Json], kind: str, name: str) -> Json:
    """A copy of the one document of that kind and name."""
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name]
    assert len(found) == 1, f"{kind} {name}"
    return copy.deepcopy(found[0])
