"""`sidecar webhook certificate`: stores a certificate and announces its authority.

First the authority is added to the webhook's configuration, beside the previous one; then the
Secret is written. So an API server accepts every replica's certificate at every moment, also if
the job stops half-way. Running it again changes nothing until the certificate must be renewed.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import logging
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, Final

from kubernetes import client

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.cluster.api import request
from sidecar.control.injection.object_fields import JsonObject
from sidecar.control.webhook.certificate import (
    IssuedCertificate,
    is_usable,
    issue_certificate,
    merge_bundle,
    service_names,
)
from sidecar.errors import ApiConflict, ApiNotFound, ApiUnavailable

log = logging.getLogger("sidecar.webhook")

_ATTEMPTS: Final = 6
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class CertificateJob:
    """What to write, and where.

    Attributes:
        namespace: of the service and the secret.
        secret: name of the Secret (kubernetes.io/tls), which is created if it is not there.
        configuration: name of the MutatingWebhookConfiguration; the authority is announced in
            each of its webhooks.
        lifetime: of a new certificate.
        renew_before: how long before its end a certificate is replaced.
    """

    namespace: str
    service: str
    secret: str
    configuration: str
    lifetime: dt.timedelta
    renew_before: dt.timedelta


def install_certificate(api: Any, job: CertificateJob) -> bool:
    """Run the job; whether it changed anything.

    It is retried a few times if another writer was faster (409), the server asks to wait
    (429), or there is no answer.

    Raises:
        ClusterError: of the last attempt; any other error is raised at once.
    """
    backoff = Backoff(_FIRST_DELAY_S, _LONGEST_DELAY_S)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return _install(api, job)
        except (ApiConflict, ApiUnavailable) as error:
            if attempt == _ATTEMPTS:
                raise
            asked_s = error.retry_after_s if isinstance(error, ApiUnavailable) else 0.0
            wait_s = min(max(backoff.next_s(), asked_s), _LONGEST_DELAY_S)
            logs.event(log, "trying again", logging.WARNING, why=error.line(), seconds=wait_s)
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def keep_certificate(api: Any, job: CertificateJob, interval_s: float) -> None:
    """Run the job now and then every ``interval_s``, until SIGTERM or SIGINT.

    Raises:
        ClusterError: as :func:`install_certificate`.
    """
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    while True:
        changed = install_certificate(api, job)
        logs.event(log, "certificate renewed" if changed else "certificate is valid")
        if stopping.wait(interval_s):
            return


def _install(api: Any, job: CertificateJob) -> bool:
    now = dt.datetime.now(dt.UTC)
    core, admission = client.CoreV1Api(api), client.AdmissionregistrationV1Api(api)
    names = service_names(job.service, job.namespace)
    secret = _read_secret(core, job)
    stored = _stored(secret)
    usable = stored is not None and is_usable(
        stored.certificate, stored.authority, names, now + job.renew_before
    )
    issued = (
        stored if usable and stored is not None else issue_certificate(names, now, job.lifetime)
    )
    announced = _announce(admission, job, issued.authority, now)
    if not usable:
        _store(core, job, issued, secret)
        logs.event(log, "certificate stored", secret=job.secret, days=job.lifetime.days)
    return announced or not usable


def _read_secret(core: Any, job: CertificateJob) -> JsonObject | None:
    what = f"read the secret `{job.secret}` in `{job.namespace}`"
    try:
        found: JsonObject = request(what, core.read_namespaced_secret, job.secret, job.namespace)
    except ApiNotFound:
        return None
    return found


def _stored(secret: JsonObject | None) -> IssuedCertificate | None:
    data = (secret or {}).get("data") or {}
    try:
        parts = [base64.b64decode(data[key]) for key in ("ca.crt", "tls.crt", "tls.key")]
    except (KeyError, binascii.Error):
        return None
    return IssuedCertificate(*parts)


def _announce(admission: Any, job: CertificateJob, authority: bytes, now: dt.datetime) -> bool:
    """Add the authority to each webhook that lacks it; whether any did."""
    try:
        found = request(
            f"read the MutatingWebhookConfiguration `{job.configuration}`",
            admission.read_mutating_webhook_configuration,
            job.configuration,
        )
    except ApiNotFound as error:
        raise ApiNotFound(error.what, "apply the webhook's manifests first") from None
    webhooks = []
    for webhook in found.get("webhooks") or []:
        present = base64.b64decode(webhook["clientConfig"].get("caBundle") or "")
        if authority.strip() not in present:
            bundle = base64.b64encode(merge_bundle(authority, present, now)).decode()
            webhooks.append({"name": webhook["name"], "clientConfig": {"caBundle": bundle}})
    if not webhooks:
        return False
    # With the version, somebody else's change meanwhile is a conflict and is not overwritten.
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    request(
        f"patch the MutatingWebhookConfiguration `{job.configuration}`",
        admission.patch_mutating_webhook_configuration,
        job.configuration,
        {"metadata": version, "webhooks": webhooks},
    )
    logs.event(log, "authority announced", configuration=job.configuration, count=len(webhooks))
    return True


def _store(
    core: Any, job: CertificateJob, issued: IssuedCertificate, found: JsonObject | None
) -> None:
    parts = {"ca.crt": issued.authority, "tls.crt": issued.certificate, "tls.key": issued.key}
    data = {key: base64.b64encode(part).decode() for key, part in parts.items()}
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": job.secret, "namespace": job.namespace},
        "data": data,
    }
    if found is None:
        what = f"create the secret `{job.secret}` in `{job.namespace}`"
        request(what, core.create_namespaced_secret, job.namespace, body)
        return
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    request(
        f"patch the secret `{job.secret}` in `{job.namespace}`",
        core.patch_namespaced_secret,
        job.secret,
        job.namespace,
        {"metadata": version, "data": data},
    )
