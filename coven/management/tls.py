"""A self-made certificate for listeners that can be reached from other machines."""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import secrets
import socket
import ssl
from pathlib import Path

VALID_DAYS = 825  # what common clients accept at most
RENEW_DAYS = 30


def is_loopback(host: str) -> bool:
    """Tell whether an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def ensure_certificate(folder: Path, hosts: list[str]) -> tuple[Path, Path, str]:
    """Give certificate file, key file (mode 0600) and the certificate's SHA-256 fingerprint.

    A certificate is made when there is none or it ends within RENEW_DAYS. Key and certificate lie in one
    file, so that there is no moment with a key that does not fit.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    both, certificate = folder / "agent.pem", folder / "certificate.pem"
    if not both.exists() or _ends_soon(both):
        key_pem, certificate_pem = _make(hosts)
        _write(both, key_pem + certificate_pem, 0o600)
        _write(certificate, certificate_pem, 0o644)
    elif not certificate.exists():
        text = both.read_bytes()
        _write(certificate, text[text.index(b"-----BEGIN CERTIFICATE") :], 0o644)
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text(encoding="ascii"))
    return certificate, both, hashlib.sha256(der).hexdigest()


def server_context(both: Path) -> ssl.SSLContext:
    """Give the context of a listener: TLS 1.2 and later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(both)
    return context


def _ends_soon(both: Path) -> bool:
    from cryptography import x509

    try:
        end = x509.load_pem_x509_certificate(both.read_bytes()).not_valid_after_utc
    except ValueError:
        return True  # damaged: nobody can be served with it
    return end - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=RENEW_DAYS)


def _make(hosts: list[str]) -> tuple[bytes, bytes]:
    # Only an agent that listens beyond loopback pays for this import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "COVEN Management Agent")])
    now = datetime.datetime.now(datetime.UTC)
    names: dict[str, x509.GeneralName] = {}
    for host in ["localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts]:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            names[host] = x509.DNSName(host)
        else:
            if not address.is_unspecified:
                names[host] = x509.IPAddress(address)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names.values()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
        certificate.public_bytes(serialization.Encoding.PEM),
    )


def _write(path: Path, content: bytes, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
