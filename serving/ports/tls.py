"""TLS for the gRPC port: a certificate, and with `client_ca` one asked of every client (mTLS).

Files that are renewed are taken up by the next connection; what is wrong with them is found before a client finds it.
"""

import logging
import math
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

from serving.errors import StartupError

logger = logging.getLogger(__name__)

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class CertificateFiles:
    """PEM. Kubernetes renews such files in place, by a rename of the folder that holds them."""

    certificate: Path  # the server's, then those that lead to its authority
    key: Path
    client_ca: Path | None

    def signature(self) -> Signature:
        """Changes whenever a file does. Raises OSError."""
        paths = [path for path in (self.certificate, self.key, self.client_ca) if path is not None]
        return tuple((status.st_ino, status.st_mtime_ns, status.st_size) for status in (path.stat() for path in paths))

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Raises OSError for what cannot be read or does not fit together; ssl.SSLError is one."""
        _context(self)  # finds what does not fit together
        pair = [(self.key.read_bytes(), self.certificate.read_bytes())]
        authorities = None if self.client_ca is None else self.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration(pair, authorities)

    def expiry(self) -> float:
        """Unix time at which the first of the server's certificates expires. Raises OSError, ValueError."""
        from cryptography import x509  # here: a server without TLS starts faster without it

        chain = x509.load_pem_x509_certificates(self.certificate.read_bytes())
        return min(certificate.not_valid_after_utc.timestamp() for certificate in chain)


def credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """Raises StartupError if the files cannot be used now. Later ones that cannot are logged, and the old ones stay."""
    try:
        latest = files.signature()
        first = files.read()
    except OSError as error:
        raise StartupError(f"TLS cannot be set up from {_named(files)}: {error}") from None

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks before each handshake, in a thread of its own; None: nothing new."""
        nonlocal latest
        try:
            if (signature := files.signature()) == latest:
                return None
            configuration = files.read()
            if files.signature() != signature:
                return None  # it is being written; the next handshake looks again
        except OSError as error:
            logger.error("the certificate cannot be renewed, the old one stays: %s", error)
            return None
        latest = signature
        logger.info("certificate renewed from '%s'", files.certificate)
        return configuration

    # None is documented for "nothing new", and missing in the type.
    return grpc.dynamic_ssl_server_credentials(first, renewed, files.client_ca is not None)  # type: ignore[arg-type]


def context(files: CertificateFiles) -> ssl.SSLContext:
    """The same for a server of Python's own. Raises StartupError if the files cannot be used now."""
    try:
        latest = files.signature()
        first = current = _context(files)
    except OSError as error:
        raise StartupError(f"TLS cannot be set up from {_named(files)}: {error}") from None

    def renewed(connection: ssl.SSLObject, *_: object) -> None:
        """At each handshake."""
        nonlocal latest, current
        try:
            if (signature := files.signature()) != latest:
                current, latest = _context(files), signature
        except OSError as error:
            logger.error("the certificate cannot be renewed, the old one stays: %s", error)
        connection.context = current

    first.sni_callback = renewed
    return first


def expiry(files: CertificateFiles) -> Callable[[], float]:
    """Asked again and again, for a metric: when what the next connection gets expires, in Unix time. It gets renewed
    files only once they can be used, and so they count only then; NaN if no certificate could be read so far.
    """
    latest: Signature | None = None
    value = math.nan

    def now() -> float:
        nonlocal latest, value
        try:
            if (signature := files.signature()) != latest:
                _context(files)
                value, latest = files.expiry(), signature
        except (OSError, ValueError) as error:
            logger.debug("no expiry of '%s': %s", files.certificate, error)
        return value

    return now


def _context(files: CertificateFiles) -> ssl.SSLContext:
    """Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # An encrypted key would be asked for on the terminal.
    context.load_cert_chain(files.certificate, files.key, password=lambda: b"")
    if files.client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(files.client_ca)
    return context


def _named(files: CertificateFiles) -> str:
    return ", ".join(f"'{path}'" for path in (files.certificate, files.key, files.client_ca) if path is not None)
