"""Which store a workload uses, and how its clients reach it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from benchmarks.far_store import Behaviour

StoreName = Literal["s3", "gcs", "azure"]
ServerName = Literal["rclone", "minio", "strict", "gcs", "azure", "sendfile"]

DELAY_S = 0.02
FAR_DELAY_S = 0.08


@dataclass(frozen=True, slots=True)
class Network:
    """A store and the way to it.

    Attributes:
        name: in progress messages.
        suffix: the end of a workload's name.
        words: the end of its title.
        server: ``rclone serve s3``, MinIO's gateway (of JuiceFS), the tests' strict S3,
            fake-gcs-server, Azurite, or our sendfile server.
        tls: whether clients speak TLS.
        delay_s: what a proxy adds to each request, in seconds.
        behaviour: of the sendfile server's connections and answers.
    """

    name: str
    suffix: str = ""
    words: str = ""
    server: ServerName = "rclone"
    tls: bool = False
    delay_s: float = 0.0
    behaviour: Behaviour | None = None

    @property
    def store(self) -> StoreName:
        """The store whose interface the server has."""
        if self.server in ("gcs", "azure"):
            return self.server
        return "s3"


PLAIN = Network("plain")
TLS = Network("tls", "-tls", ", TLS", tls=True)
DELAYED = Network("delayed", "-20ms", ", 20 ms added to each request", delay_s=DELAY_S)
FAR = Network("far", "-80ms", ", 80 ms added to each request", delay_s=FAR_DELAY_S)
MINIO = Network("minio", "-minio", ", on MinIO's gateway", "minio")
MINIO_DELAYED = Network(
    "minio-delayed",
    "-minio-20ms",
    ", on MinIO's gateway, 20 ms added to each request",
    "minio",
    delay_s=DELAY_S,
)
STRICT = Network("strict", "-strict", ", on an S3 that enforces the limits", "strict")
STRICT_DELAYED = Network(
    "strict-delayed",
    "-strict-20ms",
    ", on an S3 that enforces the limits, 20 ms added to each request",
    "strict",
    delay_s=DELAY_S,
)
GCS = Network("gcs", "-gcs", ", on fake-gcs-server", "gcs")
GCS_NAMES = replace(GCS, name="gcs-names")
"""For many names: for each request about one name this server looks at all of them."""
GCS_DELAYED = Network(
    "gcs-delayed",
    "-gcs-20ms",
    ", on fake-gcs-server, 20 ms added to each request",
    "gcs",
    delay_s=DELAY_S,
)
GCS_DELAYED_NAMES = replace(GCS_DELAYED, name="gcs-delayed-names")
AZURE = Network("azure", "-azure", ", on Azurite", "azure")
AZURE_DELAYED = Network(
    "azure-delayed",
    "-azure-20ms",
    ", on Azurite, 20 ms added to each request",
    "azure",
    delay_s=DELAY_S,
)
AZURE_NAMES = replace(AZURE, name="azure-names")
AZURE_DELAYED_NAMES = replace(AZURE_DELAYED, name="azure-delayed-names")


def _s3like(name: str, words: str, behaviour: Behaviour) -> Network:
    return Network(
        f"s3like-{name}", f"-s3like-{name}", f", {words}", "sendfile", behaviour=behaviour
    )


_MB = 1_000_000
S3LIKE_20 = _s3like(
    "20", "20 MB/s a connection, 30 ms before each answer", Behaviour(20 * _MB, 0.03)
)
"""What 85 MB/s of S3 are to a large node, these are to two cores: they need many connections."""
S3LIKE_85 = _s3like(
    "85", "85 MB/s a connection, 30 ms before each answer", Behaviour(85 * _MB, 0.03)
)
_TAIL = Behaviour(85 * _MB, 0.015, spread=0.4, late=0.01)
_TAIL_WORDS = "85 MB/s a connection, 15 ms before the median answer, half a second before 1 %"
S3LIKE_TAIL = _s3like("tail", _TAIL_WORDS, _TAIL)
S3LIKE_NEVER = _s3like("never", f"{_TAIL_WORDS}, none in 0.1 %", replace(_TAIL, never=0.001))
