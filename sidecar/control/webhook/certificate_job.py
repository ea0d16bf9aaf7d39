"""`sidecar webhook certificate`: a pair in the Secret, its authority in the configuration.

First the authority is announced beside the one before it, then the pair is stored: so at every
moment, and where the job is stopped half-way, the API server believes what any replica serves.
Running it again changes nothing until the certificate has to be renewed.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import logging
import time
from dataclasses import dataclass
from typing import Any, Final

from kubernetes import client

from sidecar import logs
from sidecar.backoff import Backoff
from sidecar.control.injection.object_fields import Json
from sidecar.control.webhook.certificate import (
    Pair,
    is_usable,
    make_pair,
    merge_bundle,
    service_names,
)
from sidecar.errors import ApiConflict, ApiNotFound, ApiUnavailable
from sidecar.kubernetes_api import request

log = logging.getLogger("sidecar.webhook")

_ATTEMPTS: Final = 6
_FIRST_DELAY_S: Final = 0.5
_LONGEST_DELAY_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """What to write, and where.

    Attributes:
        secret: of type kubernetes.io/tls, made if it is not there.
        configuration: the MutatingWebhookConfiguration; each of its webhooks gets the authority.
        lifetime, renew_before: of the certificate.
    """

    namespace: str
    service: str
    secret: str
    configuration: str
    lifetime: dt.timedelta
    renew_before: dt.timedelta


def install_certificate(api: Any, job: Job) -> bool:
    """Do it; whether anything had to be changed.

    What another writer changed meanwhile (409) is read again; where the server asks to wait
    (429) or is away, it is tried again some times.

    Raises:
        ClusterError: the last answer, when it stays like this; at once where it may not.
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


def _install(api: Any, job: Job) -> bool:
    now = dt.datetime.now(dt.UTC)
    core, admission = client.CoreV1Api(api), client.AdmissionregistrationV1Api(api)
    names = service_names(job.service, job.namespace)
    secret = _read_secret(core, job)
    stored = _stored(secret)
    usable = stored is not None and is_usable(
        stored.certificate, stored.authority, names, now + job.renew_before
    )
    pair = stored if usable and stored is not None else make_pair(names, now, job.lifetime)
    announced = _announce(admission, job, pair.authority, now)
    if not usable:
        _store(core, job, pair, secret)
        logs.event(log, "certificate stored", secret=job.secret, days=job.lifetime.days)
    return announced or not usable


def _read_secret(core: Any, job: Job) -> Json | None:
    what = f"read the secret `{job.secret}` in `{job.namespace}`"
    try:
        found: Json = request(what, core.read_namespaced_secret, job.secret, job.namespace)
    except ApiNotFound:
        return None
    return found


def _stored(secret: Json | None) -> Pair | None:
    data = (secret or {}).get("data") or {}
    try:
        parts = [base64.b64decode(data[key]) for key in ("ca.crt", "tls.crt", "tls.key")]
    except (KeyError, binascii.Error):
        return None
    return Pair(*parts)


def _announce(admission: Any, job: Job, authority: bytes, now: dt.datetime) -> bool:
    """Put the authority into each webhook of the configuration; whether it was not there."""
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
    # The version makes a change by somebody else meanwhile a conflict, and not a loss.
    version = {"resourceVersion": found["metadata"]["resourceVersion"]}
    request(
        f"patch the MutatingWebhookConfiguration `{job.configuration}`",
        admission.patch_mutating_webhook_configuration,
        job.configuration,
        {"metadata": version, "webhooks": webhooks},
    )
    logs.event(log, "authority announced", configuration=job.configuration, count=len(webhooks))
    return True


def _store(core: Any, job: Job, pair: Pair, found: Json | None) -> None:
    parts = {"ca.crt": pair.authority, "tls.crt": pair.certificate, "tls.key": pair.key}
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
