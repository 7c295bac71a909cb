"""Certificates for a first try of TLS: a certificate authority of one's own, and what it signs."""

from __future__ import annotations

import os
import socket
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, DAYS = 3650, 365
RENEWED_DAYS = 30  # before its end


class Files(NamedTuple):
    """What is in the folder. `client` and `client_key` are for clients, where the server asks for certificates."""

    ca: Path
    certificate: Path
    key: Path
    client: Path
    client_key: Path


def self_signed(folder: Path, host: str | None) -> Files:
    """The certificates in a folder, made where they are missing, end soon, or do not name the host. The CA's own key
    stays there, too, in `ca-key.pem`.

    :param host: where the server listens, beside the machine's name and loopback
    :raises OSError: the folder cannot be written
    :raises ValueError: something else is in its files
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = Files(*(folder / f"{name}.pem" for name in ("ca", "server", "server-key", "client", "client-key")))
    authority = _authority(files.ca, folder / "ca-key.pem")
    names = _names(host)
    if not _serves(files.certificate, authority[0], names):
        _write(
            files.certificate, files.key, *_signed("Darkroom server", authority, ExtendedKeyUsageOID.SERVER_AUTH, names)
        )
    if not _serves(files.client, authority[0], []):
        _write(
            files.client, files.client_key, *_signed("Darkroom client", authority, ExtendedKeyUsageOID.CLIENT_AUTH, [])
        )
    return files


Authority = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _authority(certificate: Path, key: Path) -> Authority:
    """The CA of the folder; a new one if there is none."""
    if certificate.exists() and key.exists():
        private = serialization.load_pem_private_key(key.read_bytes(), None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{key} is not a key that was made here")
        return x509.load_pem_x509_certificate(certificate.read_bytes()), private
    private = ec.generate_private_key(ec.SECP256R1())
    name = _name("Darkroom test CA")
    made = (
        _builder(name, name, private.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(private, hashes.SHA256())
    )
    _write(certificate, key, made, private)
    return made, private


def _signed(
    name: str, authority: Authority, purpose: x509.ObjectIdentifier, names: list[x509.GeneralName]
) -> Authority:
    """A certificate of the CA's, and its key."""
    ca, ca_key = authority
    private = ec.generate_private_key(ec.SECP256R1())
    builder = (
        _builder(_name(name), ca.subject, private.public_key(), DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(ca_key, hashes.SHA256()), private


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # for clients whose clocks are behind
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    none = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=not signs, key_cert_sign=signs, crl_sign=signs, **none)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _names(host: str | None) -> list[x509.GeneralName]:
    """The names under which the server is reached."""
    texts = dict.fromkeys(["localhost", "127.0.0.1", "::1", socket.gethostname()[:64], *([host] if host else [])])
    return [_general_name(text) for text in texts if text]


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _serves(file: Path, ca: x509.Certificate, names: list[x509.GeneralName]) -> bool:
    """Whether a certificate is there, of this CA, for long enough and with all names."""
    if not file.exists() or not file.with_name(f"{file.stem}-key.pem").exists():
        return False
    found = x509.load_pem_x509_certificate(file.read_bytes())
    if found.issuer != ca.subject or found.not_valid_after_utc < datetime.now(UTC) + timedelta(days=RENEWED_DAYS):
        return False
    try:
        found.verify_directly_issued_by(ca)
        its: list[x509.GeneralName] = []
        if names:
            its = [*found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value]
    except Exception:
        return False
    return all(name in its for name in names)


def _write(certificate: Path, key: Path, made: x509.Certificate, private: ec.EllipticCurvePrivateKey) -> None:
    """Key first: nobody can read it but its owner."""
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, data, mode in ((key, pem, 0o600), (certificate, made.public_bytes(serialization.Encoding.PEM), 0o644)):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
