"""The object stores of three clouds in one pod of a cluster, and clients for them outside.

Pods reach them at the pod's address. The tests' own clients go through `kubectl port-forward`,
because a machine that runs tests need not be in the cluster's network.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Self

from tests.support.cluster import Cluster, Json
from tests.support.cluster_pods import NAMESPACE, ClusterPod
from tests.support.servers import (
    HOST,
    AzureServer,
    GcsServer,
    end,
    find_program,
    spawn,
)
from tests.support.strict_server import StrictS3Server
from tests.support.waiting import wait_until

SECRET = "clouds"
S3_PORT, GCS_PORT, AZURE_PORT, TOKEN_PORT = 9000, 9001, 9002, 9003

# The emulator ignores tokens; tests/store shows that requests carry one.
_TOKENS = """
import http.server, json
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        token = {"access_token": "t", "expires_in": 3600, "token_type": "Bearer"}
        body = json.dumps(token).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", %d), Handler).serve_forever()
"""


class _Forwarded:
    """Part of a server that runs elsewhere, and is reached at a port of this machine."""

    def forward(self, port: int) -> Self:
        self.port = port
        return self


class PodS3(_Forwarded, StrictS3Server):
    """The strict S3. A test's settings (limits, pace, faults) last until it changes them."""


class PodGcs(_Forwarded, GcsServer):
    """fake-gcs-server; the pods' tokens come from the stores' pod."""


class PodAzure(_Forwarded, AzureServer):
    """Azurite."""


class Stores:
    """The pod, while it runs.

    Attributes:
        s3, gcs, azure: clients, and what a user writes into a secret.
    """

    def __init__(self, cluster: Cluster, image: str, folder: Path) -> None:
        self._cluster = cluster
        self._image = image
        self._folder = folder
        self.s3, self.gcs = PodS3(folder), PodGcs(folder)
        self.azure = PodAzure(folder)
        self._forward: subprocess.Popen[bytes] | None = None
        self._pod: ClusterPod | None = None

    def start(self) -> Self:
        """Start the pod and the clients' way to it, and make the secret ``clouds``."""
        self._pod = ClusterPod.create(self._cluster, self._document())
        self._pod.wait_until_ready()
        self.address = str(self._pod.get()["status"]["podIP"])
        self._connect()
        self._cluster.apply([self._secret()])
        return self

    def stop(self) -> None:
        """End both; the data is gone with the pod."""
        self.gcs.tokens.stop()
        if self._forward is not None:
            end(self._forward, 5.0)
        if self._pod is not None:
            self._pod.delete(grace_s=1)

    @property
    def sidecar_env(self) -> dict[str, str]:
        """The variables by which a sidecar finds Google's emulator."""
        return {"STORAGE_EMULATOR_HOST": f"http://{self.address}:{GCS_PORT}"}

    def create_bucket(self, name: str) -> None:
        """Make a bucket in all three."""
        for server in (self.s3, self.gcs, self.azure):
            server.create_bucket(name)

    def _connect(self) -> None:
        ports = (S3_PORT, GCS_PORT, AZURE_PORT)
        command = [find_program("kubectl", install="apt install kubectl"), "-n", NAMESPACE]
        command += ["port-forward", "pod/stores", *(f":{port}" for port in ports)]
        log = self._folder / "port-forward.log"
        environment = {"KUBECONFIG": str(self._cluster.kubeconfig)}
        self._forward = spawn(command, environment, log)
        found: dict[int, int] = {}

        def are_known() -> bool:
            pairs = re.findall(rf"{HOST}:(\d+) -> (\d+)", log.read_text())
            found.update({int(inside): int(outside) for outside, inside in pairs})
            return len(found) == len(ports)

        wait_until(are_known, "kubectl port-forward")
        self.s3.forward(found[S3_PORT])
        self.gcs.forward(found[GCS_PORT])
        self.azure.forward(found[AZURE_PORT])

    def _secret(self) -> Json:
        """The secret that an admin makes for the catalogue."""
        s3 = {**self.s3.credentials(), "AWS_ENDPOINT_URL": f"http://{self.address}:{S3_PORT}"}
        gcs = self.gcs.credentials()
        gcs["token_uri"] = f"http://{self.address}:{TOKEN_PORT}/token"
        azure = {
            name: text.replace(self.azure.endpoint, f"http://{self.address}:{AZURE_PORT}")
            for name, text in self.azure.credentials().items()
        }
        files = {"s3.json": s3, "gcs.json": gcs, "azure.json": azure}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": NAMESPACE},
            "stringData": {name: json.dumps(fields) for name, fields in files.items()},
        }

    def _document(self) -> Json:
        address = {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        s3 = self._container(
            "s3",
            S3_PORT,
            f"python3 -m tests.support.strict_s3 --host 0.0.0.0 --port {S3_PORT} --directory /data",
            {
                "STRICT_S3_ACCESS_KEY_ID": self.s3.access_key_id,
                "STRICT_S3_SECRET_ACCESS_KEY": self.s3.secret_access_key,
                "STRICT_S3_SESSION_TOKEN": "",
            },
        )
        gcs = self._container(
            "gcs",
            GCS_PORT,
            f"fake-gcs-server -scheme http -host 0.0.0.0 -port {GCS_PORT} -backend memory"
            f" -public-host $ADDRESS:{GCS_PORT} -external-url http://$ADDRESS:{GCS_PORT}"
            " -log-level warn",
        )
        gcs["env"].append(address)
        azure = self._container(
            "azure",
            AZURE_PORT,
            "azurite-blob --silent --disableTelemetry --skipApiVersionCheck --location /data/azure"
            f" --blobHost 0.0.0.0 --blobPort {AZURE_PORT}",
            self.azure.environment(),
        )
        tokens = self._container("tokens", TOKEN_PORT, 'python3 -c "$PROGRAM"')
        tokens["env"].append({"name": "PROGRAM", "value": _TOKENS % TOKEN_PORT})
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "stores", "namespace": NAMESPACE, "labels": {"app": "stores"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "automountServiceAccountToken": False,
                "containers": [s3, gcs, azure, tokens],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        }

    def _container(
        self, name: str, port: int, command: str, variables: dict[str, str] | None = None
    ) -> Any:
        environment = [{"name": key, "value": text} for key, text in (variables or {}).items()]
        return {
            "name": name,
            "image": self._image,
            "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", f"exec {command}"],
            "env": environment,
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        }
