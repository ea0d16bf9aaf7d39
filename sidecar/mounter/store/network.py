"""The way to one bucket's store: IPv4 or IPv6, name look-ups, the proxy, the authorities.

It is put into the environment of the bucket's own process, which our HTTP and all SDKs read. The
proxy is the secret's (which may hold a login), else the catalogue's, else the container's.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from sidecar.contract.pod import PROXY_VARIABLES
from sidecar.errors import SecretFileMissing, SecretInvalid
from sidecar.mounter.store.http.proxies import is_proxy
from sidecar.mounter.store.secrets import SecretFields
from sidecar.mounter.system.directories import path_of

if TYPE_CHECKING:
    from sidecar.contract.spec import StoreSource

_AUTHORITY_VARIABLES = ("SSL_CERT_FILE", "AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")
# The sources of a pod's own identity: on the node, and never through a proxy.
_METADATA = (
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "fd00:ec2::23",
    "fd00:ec2::254",
    "metadata.google.internal",
)

_RESOLVER = "/etc/resolv.conf"
_DOTS = {"gcs": 2}
"""The dots in the store's own name, which is outside the cluster. S3's and Azure's names have more;
``service.namespace.svc`` has two, and must not be asked for outside the cluster."""
_MOST_DOTS = 3
_IMPATIENT = "timeout:1 attempts:4"
"""1, 2, 4 and 8 s, together as long as glibc's own 5 and 10 s."""


def set_up(source: StoreSource, secrets_root: str) -> None:
    """Change this process's environment to the way of ``source``. Before any SDK is imported.

    Raises:
        CredentialError: a proxy, or the file with the authorities, cannot be used.
        OSError: there is no memory or descriptor for the authorities.
    """
    _set_resolver(_DOTS.get(source.store, _MOST_DOTS))
    _set_family()
    _set_proxy(source, secrets_root)
    if source.ca_bundle is not None:
        descriptor = os.memfd_create("authorities")  # has no name, so nobody else can change it
        with open(descriptor, "w", closefd=False) as file:
            file.write(_authorities(source.ca_bundle.path(secrets_root)))
        os.environ.update(dict.fromkeys(_AUTHORITY_VARIABLES, path_of(descriptor)))


def _set_resolver(dots: int) -> None:
    """Look names with so many dots up as they are, before domains are searched for them.

    A pod's resolver searches three to six domains for names with fewer than five dots, each for
    both families. And a lost query is sent again after one second instead of five.
    """
    with contextlib.suppress(OSError, ValueError):
        text = Path(_RESOLVER).read_text()
        found = re.findall(r"\bndots:([0-9]+)", text)
        options = [f"ndots:{dots}"] if found and int(found[-1]) > dots else []
        if not re.search(r"\b(timeout|attempts):", text):
            options.append(_IMPATIENT)
        if options:
            os.environ.setdefault("RES_OPTIONS", " ".join(options))  # resolv.conf(5)


def _set_family() -> None:
    """In a pod with IPv6 only, use AWS's names with IPv6 addresses, which its SDKs know."""
    if _leads_out("2001:db8::") and not _leads_out("192.0.2.0"):
        os.environ.setdefault("AWS_USE_DUALSTACK_ENDPOINT", "true")
        os.environ.setdefault("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "ipv6")


def _leads_out(address: str) -> bool:
    """Whether a packet to such an address would leave the pod. No packet is sent."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((address, 443))
        return True
    return False


def _set_proxy(source: StoreSource, secrets_root: str) -> None:
    fields = SecretFields("the environment", {})
    if source.secret is not None and source.secret_key is not None:
        fields = SecretFields.from_file(secrets_root, source.secret, source.secret_key)
    declared = {
        "HTTPS_PROXY": source.proxy,
        "HTTP_PROXY": source.proxy,
        "NO_PROXY": source.no_proxy,
    }
    for name in PROXY_VARIABLES[:2]:
        if fields.first(name) is not None:
            fields.check(is_proxy, name, "is not http://HOST:PORT, with or without a login")
    for name in PROXY_VARIABLES:
        value = fields.text(name) or declared[name]
        if value is not None:
            _set(name, value)
    if any(_get(name) for name in PROXY_VARIABLES[:2]) and _get("NO_PROXY").strip() != "*":
        listed = [_get("NO_PROXY"), *_METADATA]
        _set("NO_PROXY", ",".join(filter(None, listed)))


def _get(name: str) -> str:
    return os.environ.get(name.lower()) or os.environ.get(name) or ""


def _set(name: str, value: str) -> None:
    """Set it in both spellings, since libraries differ in which one counts."""
    os.environ[name] = os.environ[name.lower()] = value


def _authorities(path: str) -> str:
    """The public authorities, followed by those of a file."""
    import ssl

    import certifi

    hint = "`kubectl create configmap NAME --from-file=KEY=FILE` in the experiments' namespace"
    try:
        given = Path(path).read_text("ascii")
        ssl.create_default_context(cadata=given)
    except FileNotFoundError:
        raise SecretFileMissing(f"CA bundle {path}: no such file or directory", hint) from None
    except (OSError, ValueError):  # SSLError is an OSError
        raise SecretInvalid(f"CA bundle {path}: holds no certificates in PEM", hint) from None
    return f"{Path(certifi.where()).read_text()}\n{given}"
