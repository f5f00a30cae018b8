"""Who asks, of gRPC and of HTTP alike: the name by which a client is told from others. No name holds a secret.

Only what was verified tells clients apart, or each could be as many as it likes.
"""

import functools
import ipaddress
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote

from serving.ports import tokens
from serving.settings import Settings

PEM = "x509_pem_cert"  # gRPC's name for the peer's certificate


class Caller(Protocol):
    """What is asked of a gRPC call's context."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]: ...

    def invocation_metadata(self) -> Any: ...

    def peer(self) -> str: ...


Identify = Callable[[Caller], str]


def choose(settings: Settings) -> Identify:
    """By what these settings tell clients apart; where nobody asks who it is, or nothing says so, all are one."""
    if not settings.query_budget_rate and not settings.near_duplicates:
        return anyone
    return {"certificate": by_certificate, "token": by_token, "address": by_address}.get(settings.clients_by, anyone)


def anyone(caller: Caller) -> str:
    return "anyone"


def by_certificate(caller: Caller) -> str:
    """Its URI, such as a SPIFFE ID; without one its subject. A renewed certificate keeps both."""
    return _subject(b"".join(caller.auth_context()[PEM]))


def by_token(caller: Caller) -> str:
    """A hash of it: `printf %s TOKEN | sha256sum | cut -c -16` finds who it is."""
    token = tokens.bearer(tokens.header(caller.invocation_metadata() or ()))
    return f"token-{tokens.digest(token).hex()[:16]}"


def by_address(caller: Caller) -> str:
    """Without the port. Of IPv6 the network of 64 bits, all of whose addresses one host may use."""
    kind, _, rest = caller.peer().partition(":")
    if kind not in ("ipv4", "ipv6"):
        return kind  # a socket of this machine
    address = ipaddress.ip_address(unquote(rest).rpartition(":")[0].strip("[]").partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return str(ipaddress.ip_network((address, 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


@functools.lru_cache(1024)
def _subject(pem: bytes) -> str:
    from cryptography import x509  # here: a server without TLS starts faster without it

    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        uris = []
    return uris[0] if uris else certificate.subject.rfc4514_string()
