"""Helpers for tests of the sidecar on one bucket."""

from __future__ import annotations

import json
import re
import uuid
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from sidecar.contract.options import Times, TransportName
from sidecar.contract.spec import Volume
from tests.support.clouds import AzureCloud, Cloud, GcsCloud, S3Cloud
from tests.support.servers import GcsServer, HttpResponder, answer
from tests.support.sidecar import Sidecar
from tests.support.waiting import wait_until

TRANSPORTS: list[TransportName] = ["kernel", "libfuse"]
CLOUDS = {"s3": S3Cloud, "gcs": GcsCloud, "azure": AzureCloud}
SERVERS = {**CLOUDS, "strict_s3": S3Cloud}
"""Also another S3, which enforces the limits."""


def make_cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, name: str) -> Cloud:
    """An empty bucket on the session's server."""
    server = request.getfixturevalue(f"{name}_server")
    if isinstance(server, GcsServer):
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.endpoint)
    bucket = f"mount-{uuid.uuid4().hex[:12]}"
    server.create_bucket(bucket)
    return SERVERS[name](server, bucket)


def bucket_sidecar(
    tmp_path: Path,
    cloud: Cloud,
    *,
    bucket: str | None = None,
    secret: str | None = None,
    read_only: bool = False,
    times: Times | None = None,
    **settings: Any,
) -> Sidecar:
    """A sidecar that mounts one bucket at ``tmp_path / "m"``.

    Args:
        bucket: instead of the cloud's.
        secret: content of the secret, instead of the right one.
        settings: of :class:`Sidecar`.
    """
    volume = Volume(
        name="train",
        kind="data",
        path=str(tmp_path / "m"),
        read_only=read_only,
        source=cloud.source(bucket=bucket),
    )
    content = cloud.server.credentials_json() if secret is None else secret
    return Sidecar(
        tmp_path / "run",
        [volume],
        secrets={"cloud": content},
        times=times or Times(ready_timeout_s=20),
        **settings,
    )


LIST = b"""<ListBucketResult><Contents><Key>file</Key><Size>7</Size><ETag>1</ETag>
<LastModified>2020-01-01T00:00:00Z</LastModified></Contents></ListBucketResult>"""
DENIED = 403, b"<Error><Code>AccessDenied</Code></Error>"


class Refusing:
    """An S3 server with one object, ``file`` in ``bucket``, that refuses to return its content.

    Attributes:
        refusal: status and body; None: return the content.
    """

    def __init__(self) -> None:
        self.refusal: tuple[int, bytes] | None = DENIED
        self.server = HttpResponder(self._respond)

    @property
    def secret(self) -> str:
        """The content of a volume's secret."""
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        return json.dumps({**keys, "AWS_ENDPOINT_URL": self.server.endpoint})

    def _respond(self, handler: BaseHTTPRequestHandler) -> None:
        if handler.path.partition("?")[0] != "/bucket/file":
            answer(handler, 200, LIST)
        elif self.refusal is not None:
            answer(handler, *self.refusal)
        else:
            answer(handler, 200, b"content", {"ETag": '"1"'})


def in_namespace(script: str) -> list[str]:
    """A prefix for a command: run it in its own mount namespace, after the script."""
    return ["unshare", "-m", "sh", "-ec", f'{script}\nexec "$@"', "sh"]


def refused(sidecar: Sidecar, exit_status: int, line: str) -> None:
    """Run it: it must end with this status and this one line, and leave nothing."""
    sidecar.start(wait=False)
    try:
        ended_with(sidecar, exit_status, line)
    finally:
        sidecar.clean_up()


def ended_with(sidecar: Sidecar, exit_status: int, line: str) -> None:
    status = sidecar.wait()
    mounted = sidecar.mounted()
    said = sidecar.said()
    print(f"exit {status}:", *said)  # `pytest -rP` shows what each bad day looks like
    assert len(said) == 1, sidecar.log()
    assert re.fullmatch(line, said[0]), said[0]
    assert status == exit_status
    assert sidecar.output_file.read_text() == ""
    assert "Traceback" not in sidecar.log()
    assert sidecar.termination_message.read_text() == said[0] + "\n"
    assert not (sidecar.shared / ".sidecar/ready").exists()
    assert mounted == []
    # Children of a worker that was killed see the end of their connection, and leave.
    wait_until(lambda: not sidecar.processes(), sidecar.processes)
