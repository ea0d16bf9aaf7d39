"""From a request to its answer: the sender, the operation, the bucket, and the rest."""

from __future__ import annotations

import itertools
import time

from tests.support.strict_s3.call import Call
from tests.support.strict_s3.control import PATH, Control
from tests.support.strict_s3.counters import Counters, Line
from tests.support.strict_s3.errors import S3Error
from tests.support.strict_s3.faults import Fault, Faults, answer_instead, spoil
from tests.support.strict_s3.http_front import Answer, Handler, Request
from tests.support.strict_s3.pace import Pacer
from tests.support.strict_s3.routes import OPERATIONS, Route, route
from tests.support.strict_s3.signature import Account, check_signature
from tests.support.strict_s3.state import Settings, State
from tests.support.strict_s3.xml_answers import error_document

_UNKNOWN = Route("Unknown", "", "", {})


class Service(Handler):
    """S3.

    Args:
        region: of buckets that a test says nothing else about.
    """

    def __init__(self, state: State, account: Account, region: str) -> None:
        self._state = state
        self._account = account
        self._region = region
        self._pacer = Pacer()
        self._faults = Faults()
        self._counters = Counters()
        self._control = Control(state, self._pacer, self._faults, self._counters)
        self._numbers = itertools.count(1)

    @property
    def max_line_bytes(self) -> int:  # type: ignore[override]
        """As the limits say."""
        return self._control.limits.max_line_bytes

    @property
    def max_head_bytes(self) -> int:  # type: ignore[override]
        """As the limits say."""
        return self._control.limits.max_head_bytes

    def sending(self, size: int) -> None:
        """Wait for the bandwidth."""
        self._pacer.pass_bytes(size)

    def head_too_large(self, what: str) -> Answer:
        """URITooLong, RequestHeaderSectionTooLarge."""
        code = "URITooLong" if what == "line" else "RequestHeaderSectionTooLarge"
        error = S3Error(code)
        self._counters.add(Line("Unknown", "", "", error.status, code, 0, 0, {}))
        return self._refusal(error, "", f"{next(self._numbers):016X}")

    def handle(self, request: Request) -> Answer:
        """The answer to one request."""
        if request.path.startswith(PATH):
            return self._control.answer(request)
        request_id = f"{next(self._numbers):016X}"
        known, code = _UNKNOWN, ""
        try:
            known = route(request)
            answer = self._answer(request, known)
        except S3Error as error:
            code = error.code
            answer = self._refusal(error, request.path, request_id)
        answer.headers["x-amz-request-id"] = request_id
        bytes_in = (request.body.size or 0) - request.body.left
        bytes_out = 0 if request.method == "HEAD" else answer.size
        self._counters.add(
            Line(
                known.operation,
                known.bucket,
                known.key,
                answer.status,
                code,
                bytes_in,
                bytes_out,
                request.headers,
            )
        )
        return answer

    def _answer(self, request: Request, known: Route) -> Answer:
        fault = self._faults.draw(known)
        self._pacer.begin(known.bucket, known.key)
        if fault is not None:
            instead = _before(fault, known)
            if instead is not None:
                return instead
        settings = self._settings(known)
        region = settings.region or self._region
        if settings.redirect:
            raise _elsewhere(settings, known.bucket, region)
        limits = self._control.limits
        signed = check_signature(request, self._account, region, limits.max_skew_s)
        if signed is None and not settings.public:
            raise S3Error("AccessDenied")
        if signed is not None and "x-amz-content-sha256" not in request.headers:
            message = "Missing required header for this request: x-amz-content-sha256"
            raise S3Error("InvalidRequest", message)
        payer = request.headers.get("x-amz-request-payer") == "requester"
        if settings.requester_pays and not payer:
            raise S3Error("AccessDenied")
        call = Call(
            known.operation,
            request,
            self._state,
            limits,
            known.bucket,
            known.key,
            known.query,
            self._account,
            self._region,
            signed,
        )
        if known.bucket and known.operation != "CreateBucket":
            self._state.bucket(known.bucket)
        self._pacer.pass_bytes(request.body.size or 0)
        answer = OPERATIONS[known.operation](call)
        if settings.requester_pays:
            answer.headers["x-amz-request-charged"] = "requester"
        return answer if fault is None else spoil(answer, fault)

    def _settings(self, known: Route) -> Settings:
        bucket = self._state.buckets.get(known.bucket)
        return Settings() if bucket is None else bucket.settings

    def _refusal(self, error: S3Error, path: str, request_id: str) -> Answer:
        headers = {**error.headers}
        if error.status == 304:
            return Answer(304, headers)
        headers["Content-Type"] = "application/xml"
        return Answer(error.status, headers, error_document(error, path, request_id))


def _before(fault: Fault, known: Route) -> Answer | None:
    if fault.kind == "stall":
        time.sleep(fault.stall_s)
    return answer_instead(fault, known)


def _elsewhere(settings: Settings, bucket: str, region: str) -> S3Error:
    """Sources: "Making requests using the REST API: request redirection", "Error responses"."""
    endpoint = settings.redirect_endpoint
    headers = {"x-amz-bucket-region": region}
    if settings.redirect == 307:
        headers["Location"] = f"http://{endpoint}/{bucket}"
        return S3Error("TemporaryRedirect", fields={"Endpoint": endpoint}, headers=headers)
    return S3Error(
        "PermanentRedirect",
        fields={"Endpoint": endpoint, "Bucket": bucket, "Region": region},
        headers=headers,
    )
