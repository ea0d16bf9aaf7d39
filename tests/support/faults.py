"""A proxy between mount and store that injects faults, by a seed, and counts requests.

It forwards bytes unchanged, so signatures stay valid: a client signs for the proxy's
address, which the store sees in the ``Host`` header.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Final
from urllib.parse import parse_qs

from tests.support.proxy import Ends, Head, Proxy, http_answer, plain_body, read_head

ALL_FAULTS: Final = ("reset", "stall", "truncate", "delay", "500", "503", "429", "403")
ENDLESS_FAULTS: Final = ("drip", "drip head", "interim", "flood", "trailer")
"""Answers that go on for ``stall_s`` without an end."""
MISCHIEF: Final = (*ENDLESS_FAULTS, "cut head", "behind", "token")
"""Answers of a server that does more than fail."""
_REPEATED: Final = {
    "drip head": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "interim": (b"", b"HTTP/1.1 102 Processing\r\n\r\n"),
    "flood": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 50),
}
_PAUSE_S = 0.05
_NEXT_TOKEN = re.compile(rb"(<NextContinuationToken>)[^<]*")
_FRAMING = re.compile(rb"(?i)(content-length|transfer-encoding):")
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
        rate: fraction of the requests that get a fault.
        faults: equally likely.
        latency_s: added to every request; may be changed.
        stall_s: how long a stalled connection is silent before it is closed.
        delay_s: of a delayed answer.

    Attributes:
        injected: number of faults, by name.
        requests: number of requests, by method.
        body_bytes: bytes of answers' bodies sent to the client, by method.
        refuse: a policy; called with method and target of each request. The request gets
            status 403 with the code that it returns, unless that is empty.
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
        if fault == "cut head":
            ends.client.sendall(b"HTTP/1.1 200 OK\r\nContent-Le")
            return False
        if fault in _REPEATED:
            begin, piece = _REPEATED[fault]
            return self._go_on(ends, begin, itertools.repeat(piece))
        raw = request.raw + body
        if fault in {"drip", "trailer", "token"} and request.method == "GET":
            return self._spoil(fault, request, raw, ends)
        behind = http_answer(200, "OK", b"belongs to no request") if fault == "behind" else b""
        truncate = fault == "truncate"
        return self.forward(request.method, raw, ends, truncate=truncate, behind=behind)

    def _spoil(self, fault: str, request: Head, raw: bytes, ends: Ends) -> bool:
        """Forward a GET, and send something else than its answer."""
        ends.upstream.sendall(raw)
        answer = read_head(ends.answers)
        if answer is None:
            return False
        body = plain_body(ends.answers, answer)
        lines = answer.raw.split(b"\r\n")[:-2]
        kept = b"\r\n".join(line for line in lines if not _FRAMING.match(line)) + b"\r\n"
        if fault == "drip":
            head = kept + b"Content-Length: %d\r\n\r\n" % len(body)
            drops = (body[at : at + 1] for at in range(len(body) - 1))
            return self._go_on(ends, head, itertools.chain(drops, itertools.repeat(b"")))
        if fault == "trailer":
            head = kept + b"Transfer-Encoding: chunked\r\n\r\n"
            chunk = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            return self._go_on(ends, head + chunk + b"0\r\n", itertools.repeat(b"a: b\r\n"))
        # The token of this page again: a client that follows it never gets to the end.
        asked = parse_qs(request.target.partition("?")[2]).get("continuation-token", [""])[0]
        if asked:
            body = _NEXT_TOKEN.sub(lambda found: found[1] + escape(asked).encode(), body)
        ends.client.sendall(kept + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        return True

    def _go_on(self, ends: Ends, begin: bytes, pieces: Iterator[bytes]) -> bool:
        """Send a piece now and then, and close the connection after a while."""
        ends.client.sendall(begin)
        ends_s = time.monotonic() + self._stall_s
        while time.monotonic() < ends_s and not self._ending.wait(_PAUSE_S):
            ends.client.sendall(next(pieces))
        return False

    def passed(self, method: str, size: int) -> None:
        """Count body bytes."""
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
                # Once for each object: a second 403 would be a refusal, not a fault.
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
