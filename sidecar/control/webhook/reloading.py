"""The catalogue and the certificate, read again when a kubelet replaces the mounted files.

A kubelet swaps the symbolic link ``..data``, so a file changes as a whole, and the file behind the
link is compared. The files are polled: they would have to be compared after an inotify event, too,
and a stat(2) costs a microsecond.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from pathlib import Path
from typing import NamedTuple

from sidecar import logs
from sidecar.control.catalogue.catalogue import Catalogue, parse_catalogue
from sidecar.errors import CatalogueInvalid, CertificateInvalid, ConfigError

log = logging.getLogger("sidecar.webhook")


class _Identity(NamedTuple):
    """Tells one content of a file from the next."""

    inode: int
    mtime_ns: int
    size_bytes: int


class ReloadingCatalogue:
    """The catalogue in a file.

    If the file becomes invalid, that is logged once and the last valid catalogue stays in use: a
    typing error must not keep every experiment from starting.

    Args:
        path: the file, which is read at once.
        kept: the last valid catalogue of earlier replicas, used if the file is invalid at the
            start; it may not be there.

    Raises:
        ConfigError: the file is invalid, and there is no valid one in ``kept``.

    Attributes:
        current: the last valid catalogue.
        text: the text of that catalogue.
        problem: the error's line while the file is invalid; None if it was valid when it was
            last read.
    """

    def __init__(self, path: Path, kept: Path) -> None:
        self._path = path
        self._refreshing = threading.Lock()
        self._identity = _identity(path)
        self.problem: str | None = None
        try:
            self.text, self.current = _read(path)
        except ConfigError as error:
            self.text, self.current = _read_kept(kept, error)
            self._refuse(error)

    def refresh(self) -> None:
        """Read the file if it changed. For any thread."""
        with self._refreshing:
            self._refresh()

    def _refresh(self) -> None:
        identity = _identity(self._path)
        if identity == self._identity:
            return
        self._identity = identity
        try:
            self.text, self.current = _read(self._path)
        except ConfigError as error:
            self._refuse(error)
        else:
            self.problem = None
            volumes = len(self.current.data) + len(self.current.outputs)
            logs.event(log, "catalogue read", volumes=volumes)

    def _refuse(self, error: ConfigError) -> None:
        self.problem = error.line()
        logs.event(log, "catalogue refused, the last one holds", logging.ERROR, why=self.problem)


def _read(path: Path) -> tuple[str, Catalogue]:
    """A file's text, and the catalogue in it. Raises ConfigError."""
    try:
        text = path.read_text("utf-8-sig")
    except OSError as error:
        raise CatalogueInvalid(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CatalogueInvalid(f"{path}: not UTF-8 (byte {error.start})") from None
    return text, parse_catalogue(text, str(path))


def _read_kept(path: Path, why: ConfigError) -> tuple[str, Catalogue]:
    """The catalogue that an earlier replica kept. Raises ``why`` if there is no valid one."""
    try:
        return _read(path)
    except ConfigError:
        raise why from None


class ReloadingCertificate:
    """A TLS server's certificate and key: ``tls.crt`` and ``tls.key`` of a Secret.

    Files that became invalid are logged once, and the last valid ones stay in use.

    Args:
        folder: holds the files, which are read at once.

    Raises:
        CertificateInvalid: they cannot be used.

    Attributes:
        context: with the last valid certificate. Another one replaces it, so that no connection
            sees a certificate without its key.
        expires_s: end of the certificate in use, in seconds since 1970.
    """

    def __init__(self, folder: Path) -> None:
        self._certificate, self._key = folder / "tls.crt", folder / "tls.key"
        self._identities = self._identify()
        self.context, self.expires_s = self._load()

    def refresh(self) -> None:
        """Load the files if they changed."""
        identities = self._identify()
        if identities == self._identities:
            return
        self._identities = identities
        try:
            self.context, self.expires_s = self._load()
        except CertificateInvalid as error:
            logs.event(
                log, "certificate refused, the last one holds", logging.ERROR, why=error.line()
            )
        else:
            logs.event(log, "certificate read", expires_s=int(self.expires_s))

    def _identify(self) -> tuple[_Identity | None, _Identity | None]:
        return _identity(self._certificate), _identity(self._key)

    def _load(self) -> tuple[ssl.SSLContext, float]:
        """A context with the files; when the certificate ends, in seconds since 1970."""
        from cryptography import x509

        context = _context()
        try:
            context.load_cert_chain(self._certificate, self._key)
            ends = x509.load_pem_x509_certificate(
                self._certificate.read_bytes()
            ).not_valid_after_utc
        except (OSError, ValueError) as error:  # SSLError is an OSError
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise CertificateInvalid(
                f"`{self._certificate}` and `{self._key}` cannot be used: {reason}",
                "make a pair with `sidecar webhook certificate`, or with cert-manager",
            ) from None
        return context, ends.timestamp()


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # no second handshake, as often as a client likes
    return context


def _identity(path: Path) -> _Identity | None:
    """Identity of the file that ``path`` leads to; None if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return _Identity(status.st_ino, status.st_mtime_ns, status.st_size)
