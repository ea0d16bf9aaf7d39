"""Makes and checks the admission server's certificate, for clusters without cert-manager.

The authority signs one certificate and its key is thrown away; a renewal makes a new authority.
There is no I/O here, and the time is an argument.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_NAME: Final = "mount-sidecar webhook CA"
_CLOCK_SKEW: Final = dt.timedelta(minutes=5)
"""How far another machine's clock may be behind."""
_BUNDLE_SIZE: Final = 2
"""The newest authority and the one before it."""


@dataclass(frozen=True, slots=True, repr=False)
class IssuedCertificate:
    """A server's certificate, its key, and the authority that signed it; all PEM.

    It has no ``repr``, since the key is a secret.
    """

    authority: bytes
    certificate: bytes
    key: bytes


def service_names(service: str, namespace: str) -> list[str]:
    """DNS names of a Service. An API server uses the one that ends in ``.svc``."""
    name = f"{service}.{namespace}.svc"
    return [name, f"{service}.{namespace}", f"{name}.cluster.local"]


def issue_certificate(
    names: list[str], now: dt.datetime, lifetime: dt.timedelta
) -> IssuedCertificate:
    """A new authority, and a server's certificate that it signed.

    Args:
        names: DNS names; the first is also the subject.
        now: in UTC.
        lifetime: of the certificate and the authority.
    """
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = _Template(AUTHORITY_NAME, authority_key.public_key(), now, lifetime).sign(
        AUTHORITY_NAME, authority_key, x509.BasicConstraints(ca=True, path_length=0), []
    )
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _Template(names[0], key.public_key(), now, lifetime).sign(
        AUTHORITY_NAME, authority_key, x509.BasicConstraints(ca=False, path_length=None), names
    )
    return IssuedCertificate(
        authority.public_bytes(serialization.Encoding.PEM),
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )


@dataclass(frozen=True, slots=True)
class _Template:
    subject: str
    public_key: ec.EllipticCurvePublicKey
    now: dt.datetime
    lifetime: dt.timedelta

    def sign(
        self,
        issuer: str,
        issuer_key: ec.EllipticCurvePrivateKey,
        constraints: x509.BasicConstraints,
        names: list[str],
    ) -> x509.Certificate:
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(self.subject))
            .issuer_name(_name(issuer))
            .public_key(self.public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.now - _CLOCK_SKEW)
            .not_valid_after(self.now + self.lifetime)
            .add_extension(constraints, critical=True)
            .add_extension(_usage(constraints.ca), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self.public_key), critical=False
            )
            .add_extension(issuer_id, critical=False)
        )
        if names:
            alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
            server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
            builder = builder.add_extension(alternatives, critical=False)
            builder = builder.add_extension(server, critical=False)
        return builder.sign(issuer_key, hashes.SHA256())


def is_usable(certificate: bytes, authority: bytes, names: list[str], until: dt.datetime) -> bool:
    """Whether the authority signed the certificate, for all ``names``, and both last long enough.

    Args:
        certificate, authority: PEM; anything else is not usable.
        until: in UTC; both must be valid until then.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate)
        signer = x509.load_pem_x509_certificate(authority)
        found.verify_directly_issued_by(signer)
        alternatives = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (ValueError, TypeError, x509.ExtensionNotFound, InvalidSignature):
        return False
    known = alternatives.value.get_values_for_type(x509.DNSName)
    return (
        set(names) <= set(known)
        and min(found.not_valid_after_utc, signer.not_valid_after_utc) >= until
    )


def merge_bundle(newest: bytes, present: bytes, now: dt.datetime) -> bytes:
    """``newest``, followed by our authorities in ``present`` that have not expired.

    While a new certificate spreads, some replicas still serve the old one, so API servers must
    accept both.
    """
    bundle = [x509.load_pem_x509_certificate(newest)]
    try:
        known = x509.load_pem_x509_certificates(present)
    except ValueError:  # empty, or a placeholder
        known = []
    for certificate in known:
        ours = certificate.subject == _name(AUTHORITY_NAME)
        if ours and certificate not in bundle and certificate.not_valid_after_utc > now:
            bundle.append(certificate)
    return b"".join(item.public_bytes(serialization.Encoding.PEM) for item in bundle[:_BUNDLE_SIZE])


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
