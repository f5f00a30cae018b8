"""TLS for the gRPC port: a certificate, and with `client_ca` one asked of every client (mTLS).

Files that are renewed are taken up by the next connection; what is wrong with them is found before a client finds it.
"""

import logging
import ssl
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
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An encrypted key would be asked for on the terminal.
        context.load_cert_chain(self.certificate, self.key, password=lambda: b"")
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
        pair = [(self.key.read_bytes(), self.certificate.read_bytes())]
        authorities = None if self.client_ca is None else self.client_ca.read_bytes()
        return grpc.ssl_server_certificate_configuration(pair, authorities)


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


def _named(files: CertificateFiles) -> str:
    return ", ".join(f"'{path}'" for path in (files.certificate, files.key, files.client_ca) if path is not None)
