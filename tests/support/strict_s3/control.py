"""The tests' requests to the server, as JSON below ``/-/control/``: no bucket is called ``-``.

==========  =======================  ======================================================
method      path                     what
==========  =======================  ======================================================
GET         ``counts``               requests, refusals, bytes in and out, by operation
DELETE      ``counts``               count from nothing
GET         ``requests``             the last requests
PUT         ``limits``               some of :class:`Limits`; the others are S3's
PUT         ``pace``                 some of :class:`Pace`; the others are the default
POST        ``faults``               one more :class:`Fault`
GET         ``faults``               how often each was used
DELETE      ``faults``               none
PUT         ``buckets/NAME``         some of :class:`Settings`; the others stay
==========  =======================  ======================================================
"""

from __future__ import annotations

import json
from typing import Any

from tests.support.strict_s3.counters import Counters
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.faults import Fault, Faults
from tests.support.strict_s3.http_front import Answer, Request
from tests.support.strict_s3.limits import Limits
from tests.support.strict_s3.pace import Pace, Pacer
from tests.support.strict_s3.state import State

PATH = "/-/control/"


class Control:
    """Answers those requests.

    Attributes:
        limits: the present ones.
    """

    def __init__(self, state: State, pacer: Pacer, faults: Faults, counters: Counters) -> None:
        self.limits = Limits()
        self._state = state
        self._pacer = pacer
        self._faults = faults
        self._counters = counters

    def answer(self, request: Request) -> Answer:
        """The answer; 400 with the reason if there is no such request."""
        text = request.body.read(request.body.left)
        what, _, name = request.path.removeprefix(PATH).partition("/")
        try:
            result = self._do(request.method, what, name, json.loads(text or "{}"))
        except (TypeError, ValueError, LookupError, S3Error) as error:
            return Answer(400, {"Content-Type": "text/plain"}, f"{error}\n".encode())
        return Answer(200, {"Content-Type": "application/json"}, json.dumps(result).encode())

    def _do(self, method: str, what: str, name: str, fields: dict[str, Any]) -> Any:
        match method, what:
            case "GET", "counts":
                return self._counters.as_json()
            case "DELETE", "counts":
                self._counters.reset()
            case "GET", "requests":
                return self._counters.lines()
            case "PUT", "limits":
                self.limits = Limits(**fields)
            case "PUT", "pace":
                self._pacer.pace = Pace(**fields)
            case "POST", "faults":
                self._faults.add(Fault(**fields))
            case "GET", "faults":
                return self._faults.applied
            case "DELETE", "faults":
                self._faults.clear()
            case "PUT", "buckets":
                self._state.bucket(name).change_settings(fields)
            case _:
                raise LookupError(f"no such control: {method} {what}")
        return None
