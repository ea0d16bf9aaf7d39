"""Files that a kubelet replaces under a running process: ConfigMaps and Secrets as folders.

It swaps a symlink (``..data``), so a file changes at once and whole; what is compared is the
file that the name leads to. Polled, because inotify on such a folder needs the same look after
every event, and a stat costs a microsecond.
"""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path

from sidecar import logs
from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.errors import CatalogueInvalid, CertificateInvalid, ConfigError

log = logging.getLogger("sidecar.webhook")

_Identity = tuple[tuple[int, int, int], ...]


class CatalogueFile:
    """The catalogue, as it is now.

    Args:
        path: read at once; a wrong one raises ConfigError, so that a start with it fails.

    Attributes:
        valid: whether the file as it is now could be read. If not, the last good one holds,
            since a typing error must not keep every experiment from starting.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity = _identity(path)
        self._current = self._read()
        self.valid = True

    def current(self) -> Catalogue:
        """The newest valid catalogue; looks at the file each time, parses it when it changed."""
        identity = _identity(self._path)
        if identity != self._identity:
            self._identity = identity
            try:
                self._current = self._read()
            except ConfigError as error:
                self.valid = False
                logs.event(
                    log, "catalogue refused, the last one holds", logging.ERROR, why=error.line()
                )
            else:
                self.valid = True
                logs.event(log, "catalogue read", volumes=_count(self._current))
        return self._current

    def _read(self) -> Catalogue:
        where = str(self._path)
        try:
            text = self._path.read_text("utf-8-sig")
        except OSError as error:
            raise CatalogueInvalid(f"{where}: cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise CatalogueInvalid(f"{where}: not UTF-8 (byte {error.start})") from None
        return parse_catalogue(text, where)


class CertificateFiles:
    """A TLS server's certificate and key, ``tls.crt`` and ``tls.key`` of a Secret.

    Args:
        folder: read at once; raises CertificateInvalid.

    Attributes:
        context: of the server; each new connection uses the newest valid pair.
    """

    def __init__(self, folder: Path) -> None:
        self._certificate, self._key = folder / "tls.crt", folder / "tls.key"
        self.context = _context()
        self._identity = _identity(self._certificate, self._key)
        self._load()

    def refresh(self) -> None:
        """Load the pair if it changed; a wrong one is logged once, and the last one holds."""
        identity = _identity(self._certificate, self._key)
        if identity == self._identity:
            return
        self._identity = identity
        try:
            self._load()
        except CertificateInvalid as error:
            logs.event(
                log, "certificate refused, the last one holds", logging.ERROR, why=error.line()
            )
        else:
            logs.event(log, "certificate read", expires_s=int(self.expires_s))

    @property
    def expires_s(self) -> float:
        """When the certificate in use ends, in seconds since 1970."""
        return self._expires_s

    def _load(self) -> None:
        # Tried apart first: a pair that does not match would spoil the context in use.
        from cryptography import x509

        try:
            _context().load_cert_chain(self._certificate, self._key)
            ends = x509.load_pem_x509_certificate(
                self._certificate.read_bytes()
            ).not_valid_after_utc
            self.context.load_cert_chain(self._certificate, self._key)
        except (OSError, ValueError) as error:  # SSLError is an OSError
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CertificateInvalid(
                f"`{self._certificate}` and `{self._key}` cannot be used: {reason}",
                "make a pair with `sidecar webhook certificate`, or with cert-manager",
            ) from None
        self._expires_s = ends.timestamp()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _identity(*paths: Path) -> _Identity:
    """What tells one content from the next; a missing file has one of its own."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            found.append((0, 0, 0))
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


def _count(catalogue: Catalogue) -> int:
    return len(catalogue.data) + len(catalogue.outputs)
