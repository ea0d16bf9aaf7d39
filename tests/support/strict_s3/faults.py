"""Answers that are spoilt on purpose, by rules of a test."""

from __future__ import annotations

import random
import re
import threading
from dataclasses import dataclass
from typing import Literal, get_args

from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.http_front import Answer
from tests.support.strict_s3.routes import Route
from tests.support.strict_s3.xml_answers import error_document

Kind = Literal[
    "error", "reset", "lost_answer", "late_error", "truncate", "flip_bit", "wrong_etag", "stall"
]
_WRONG_ETAG = "0" * 32


@dataclass(frozen=True)
class Fault:
    """A rule.

    Attributes:
        kind: ``error``, ``reset`` and ``late_error`` come instead of the operation, ``stall`` holds
            it back for ``stall_s``; the others spoil the answer to what was done: ``lost_answer``
            resets the connection. ``late_error`` is status 200 and an error in the body, as S3
            may answer CopyObject, UploadPartCopy and CompleteMultipartUpload.
        operation: a regular expression; all of the operation's name matches.
        key: a regular expression that is found in the key.
        skip: how many that match go by first.
        times: how many are spoilt; None for all.
        rate: of those, the part that is spoilt.
        status, code, retry_after_s: of an ``error``; the code also of a ``late_error``.
    """

    kind: Kind
    operation: str = ".*"
    key: str = ""
    skip: int = 0
    times: int | None = 1
    rate: float = 1.0
    seed: int = 0
    status: int = 503
    code: str = "SlowDown"
    retry_after_s: float | None = None
    stall_s: float = 30.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"no such fault: {self.kind}")


class _Rule:
    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.dice = random.Random(fault.seed)
        self.seen = 0
        self.applied = 0

    def draw(self, route: Route) -> bool:
        fault = self.fault
        if not re.fullmatch(fault.operation, route.operation):
            return False
        if not re.search(fault.key, route.key):
            return False
        self.seen += 1
        used_up = fault.times is not None and self.applied >= fault.times
        if self.seen <= fault.skip or used_up or self.dice.random() >= fault.rate:
            return False
        self.applied += 1
        return True


class Faults:
    """All rules; the first that applies is used."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """Use one more rule from now on."""
        with self._lock:
            self._rules.append(_Rule(fault))

    def clear(self) -> None:
        """No more faults."""
        with self._lock:
            self._rules.clear()

    @property
    def applied(self) -> list[int]:
        """How often each rule was used, in the order in which they were added."""
        with self._lock:
            return [rule.applied for rule in self._rules]

    def draw(self, route: Route) -> Fault | None:
        """The fault of this request."""
        with self._lock:
            return next((rule.fault for rule in self._rules if rule.draw(route)), None)


def answer_instead(fault: Fault, route: Route) -> Answer | None:
    """The answer of a fault that keeps the operation from being done."""
    if fault.kind == "reset":
        return Answer(reset=True)
    if fault.kind == "late_error":
        body = error_document(S3Error(fault.code, "injected"), "", "injected")
        return Answer(200, {"Content-Type": "application/xml"}, body)
    if fault.kind == "error":
        headers = {}
        if fault.retry_after_s is not None:
            headers["Retry-After"] = f"{fault.retry_after_s:g}"
        raise S3Error(fault.code, "injected", status=fault.status, headers=headers)
    return None


def spoil(answer: Answer, fault: Fault) -> Answer:
    """Change the answer to what was done."""
    if fault.kind == "lost_answer":
        answer.reset = True
    elif fault.kind == "truncate":
        answer.truncate = True
    elif fault.kind == "flip_bit":
        answer.flip_bit = True
    elif fault.kind == "wrong_etag":
        if "ETag" in answer.headers:
            answer.headers["ETag"] = f'"{_WRONG_ETAG}"'
        wrong = f"<ETag>&quot;{_WRONG_ETAG}&quot;</ETag>".encode()
        answer.body = re.sub(rb"<ETag>[^<]*</ETag>", wrong, answer.body)
    return answer
