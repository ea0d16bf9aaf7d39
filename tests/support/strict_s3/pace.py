"""How fast the server is: latency, bandwidth, and SlowDown above a rate."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from tests.support.strict_s3.errors import S3Error


@dataclass(frozen=True)
class Pace:
    """What a test may say.

    Attributes:
        latency_s: before each answer.
        bytes_per_s: of all bodies together, in both directions; 0 for no limit.
        requests_per_s: of a prefix (a key up to its last slash), above which the answer is
            SlowDown; 0 for no limit. Source: "Best practices design patterns: optimizing Amazon
            S3 performance".
        retry_after_s: sent with it.
    """

    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    requests_per_s: float = 0.0
    retry_after_s: float | None = None


class Pacer:
    """Holds requests to a pace, which may be changed.

    Attributes:
        pace: the present one.
    """

    def __init__(self) -> None:
        self.pace = Pace()
        self._free_s = 0.0
        self._tokens: dict[tuple[str, str], tuple[float, float]] = {}
        self._lock = threading.Lock()

    def begin(self, bucket: str, key: str) -> None:
        """Wait for the latency. Raises S3Error: SlowDown."""
        pace = self.pace
        if pace.latency_s:
            time.sleep(pace.latency_s)
        if pace.requests_per_s and not self._take((bucket, key.rpartition("/")[0])):
            headers = {}
            if pace.retry_after_s is not None:
                headers["Retry-After"] = f"{pace.retry_after_s:g}"
            raise S3Error("SlowDown", headers=headers)

    def pass_bytes(self, count: int) -> None:
        """Wait until so many bytes may have passed."""
        rate = self.pace.bytes_per_s
        if not (rate and count):
            return
        with self._lock:
            now = time.monotonic()
            self._free_s = max(self._free_s, now) + count / rate
            wait_s = self._free_s - now
        time.sleep(wait_s)

    def _take(self, prefix: tuple[str, str]) -> bool:
        """A bucket of one second's tokens, and of one at least."""
        rate = self.pace.requests_per_s
        most = max(rate, 1.0)
        with self._lock:
            now = time.monotonic()
            tokens, at = self._tokens.get(prefix, (most, now))
            tokens = min(tokens + (now - at) * rate, most)
            enough = tokens >= 1
            self._tokens[prefix] = (tokens - enough, now)
            return enough
