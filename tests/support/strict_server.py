"""The strict S3 as a server of the tests, and what they tell it."""

from __future__ import annotations

import http.client
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.servers import HOST, REPOSITORY, S3Server
from tests.support.strict_s3.control import PATH
from tests.support.strict_s3.counters import Line


class Counts(NamedTuple):
    """Since the start, or :meth:`StrictS3Server.reset_counts`.

    Attributes:
        requests: by operation, as Amazon names it: ``GetObject``, ``UploadPartCopy``.
        refusals: by operation and code: ``"CompleteMultipartUpload EntityTooSmall"``.
        bytes_in, bytes_out: of bodies, by operation.
    """

    requests: Counter[str]
    refusals: Counter[str]
    bytes_in: Counter[str]
    bytes_out: Counter[str]


class StrictS3Server(S3Server):
    """An S3 that refuses what Amazon's documentation says is refused: ``strict_s3``.

    Its state survives :meth:`stop` and :meth:`start`; what a test told it (limits, pace, faults)
    does not, but a bucket's settings do.
    """

    access_key_id = "strictaccesskey"

    def __init__(
        self,
        directory: Path,
        *,
        secret_access_key: str = "strict-secret-key-1",
        session_token: str = "",
        region: str = "us-east-1",
    ) -> None:
        super().__init__(directory, secret_access_key=secret_access_key)
        self.session_token = session_token
        self.region = region

    def command(self) -> Sequence[str]:
        """The server in the foreground."""
        return [
            sys.executable,
            "-m",
            "tests.support.strict_s3",
            "--port",
            str(self.port),
            "--directory",
            str(self.directory),
            "--region",
            self.region,
        ]

    def environment(self) -> dict[str, str]:
        """The login, kept out of the argument list, and where the module is."""
        return {
            "PYTHONPATH": str(REPOSITORY),
            "STRICT_S3_ACCESS_KEY_ID": self.access_key_id,
            "STRICT_S3_SECRET_ACCESS_KEY": self.secret_access_key,
            "STRICT_S3_SESSION_TOKEN": self.session_token,
        }

    def credentials(self) -> dict[str, str]:
        """What a user writes into the secret."""
        token = {"AWS_SESSION_TOKEN": self.session_token} if self.session_token else {}
        return {**super().credentials(), **token}

    def limits(self, **changed: int) -> None:
        """Scale limits down; fields of ``strict_s3.limits.Limits``, the others are S3's own."""
        self._control("PUT", "limits", changed)

    def pace(self, **changed: float | None) -> None:
        """How fast it is; fields of ``strict_s3.pace.Pace``, the others are the default."""
        self._control("PUT", "pace", changed)

    def fault(self, kind: str, **fields: Any) -> None:
        """Spoil answers; fields of ``strict_s3.faults.Fault``. The oldest that applies is used."""
        self._control("POST", "faults", {"kind": kind, **fields})

    def faults_used(self) -> list[int]:
        """How often each fault was used."""
        used: list[int] = self._control("GET", "faults")
        return used

    def settings(self, bucket: str, **changed: Any) -> None:
        """Change a bucket's settings; fields of ``strict_s3.state.Settings``."""
        self._control("PUT", f"buckets/{bucket}", changed)

    def reset(self) -> None:
        """S3's own limits, no pace, no faults, counts from nothing."""
        self.limits()
        self.pace()
        self._control("DELETE", "faults")
        self.reset_counts()

    def counts(self) -> Counts:
        """What was asked."""
        fields = self._control("GET", "counts")
        return Counts(**{name: Counter(fields[name]) for name in Counts._fields})

    def request_count(self) -> int:
        """How many requests were asked."""
        return self.counts().requests.total()

    def reset_counts(self) -> None:
        """Count from nothing."""
        self._control("DELETE", "counts")

    def requests(self) -> list[Line]:
        """The last requests, oldest first."""
        return [Line(**fields) for fields in self._control("GET", "requests")]

    def _control(self, method: str, what: str, fields: dict[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request(method, f"{PATH}{what}", json.dumps(fields or {}))
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(text.strip())
        return json.loads(text)
