"""A proxy between mount and store that breaks some requests, by a seed, and counts all.

It forwards bytes as they are, so signatures stay valid: a client signs for the proxy's
address, which the store sees in the ``Host`` header.
"""

from __future__ import annotations

import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

from tests.support.proxy import Ends, Head, Proxy, http_answer

ALL_FAULTS: Final = ("reset", "stall", "truncate", "delay", "500", "503", "429", "403")
_LINGER_AT_ONCE = struct.pack("ii", 1, 0)
_CODES = {
    "500": "InternalError",
    "503": "SlowDown",
    "429": "TooManyRequests",
    "403": "AccessDenied",
}


class FaultProxy(Proxy):
    """Listens on loopback, forwards to ``port`` there.

    Args:
        rate: part of the requests that get a fault.
        faults: which, each as likely as the others.
        latency_s: added to every request; it may be changed.
        stall_s: how long a stalled connection is silent before it is closed.
        delay_s: how long a delayed answer is held back.

    Attributes:
        injected: how often each fault was.
        requests: how many there were, by method.
        body_bytes: bytes of answers' bodies that went to the client, by method.
        refuse: called with the method and the target of each request; answers with status 403
            and the code that it returns, unless that is empty, as a store's policy would.
    """

    def __init__(
        self,
        port: int,
        *,
        rate: float = 0.0,
        faults: Sequence[str] = ALL_FAULTS,
        seed: int = 0,
        latency_s: float = 0.0,
        stall_s: float = 30.0,
        delay_s: float = 0.3,
    ) -> None:
        super().__init__(port)
        self.rate = rate
        self._faults = faults
        self._dice = random.Random(seed)
        self.latency_s = latency_s
        self._stall_s = stall_s
        self._delay_s = delay_s
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.body_bytes: Counter[str] = Counter()
        self.refuse: Callable[[str, str], str] = _let_pass
        self._denied: set[str] = set()

    def exchange(self, request: Head, body: bytes, ends: Ends) -> bool:
        """Forward one request, unless a fault is drawn for it."""
        fault = self._draw(request.method, request.target)
        if code := self.refuse(request.method, request.target):
            ends.client.sendall(_refusal("403", code))
            return True
        if self.latency_s:
            time.sleep(self.latency_s)
        if fault in _CODES:
            ends.client.sendall(_refusal(fault, _CODES[fault]))
            return True
        if fault == "reset":
            ends.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_AT_ONCE)
            return False
        if fault == "stall":
            self._ending.wait(self._stall_s)
            return False
        if fault == "delay":
            self._ending.wait(self._delay_s)
        raw = request.raw + body
        return self.forward(request.method, raw, ends, truncate=fault == "truncate")

    def passed(self, method: str, size: int) -> None:
        """Counts."""
        with self._lock:
            self.body_bytes[method] += size

    def _draw(self, method: str, target: str) -> str:
        with self._lock:
            self.requests[method] += 1
            if self._dice.random() >= self.rate:
                return ""
            fault = self._dice.choice(self._faults)
            path = target.partition("?")[0]
            if fault == "403":
                # Two in a row on one object would be a refusal and not a fault.
                if path in self._denied:
                    return ""
                self._denied.add(path)
            self.injected[fault] += 1
            return fault


def _let_pass(_method: str, _target: str) -> str:
    return ""


def _refusal(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
    return http_answer(int(status), "Injected", body, Content_Type="application/xml")
