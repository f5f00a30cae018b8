"""Names of clients, from what gRPC and HTTP tell of a call."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from serving.ports import identity
from serving.ports.identity import anyone, by_address, by_certificate, by_token
from serving.settings import Settings


class Call:
    def __init__(self, peer: str = "", metadata: Sequence[tuple[str, str]] = (), pem: bytes = b"") -> None:
        self._peer, self._metadata, self._pem = peer, metadata, pem

    def peer(self) -> str:
        return self._peer

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        return self._metadata

    def auth_context(self) -> dict[str, list[bytes]]:
        return {identity.PEM: [self._pem]}


@pytest.mark.parametrize(
    ("peer", "name"),
    [
        ("ipv4:10.0.0.7:40000", "10.0.0.7"),
        ("ipv6:%5B2001:db8:1:2:3:4:5:6%5D:40000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:2::9]:40001", "2001:db8:1:2::/64"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::/64"),
        ("ipv6:%5B::ffff:10.0.0.7%5D:1", "10.0.0.7"),
        ("unix:", "unix"),
    ],
)
def test_an_address_is_a_host_without_its_port(peer: str, name: str) -> None:
    assert by_address(Call(peer)) == name


def test_tokens_are_told_apart_by_a_hash_and_the_first_header_counts() -> None:
    def name(*headers: str) -> str:
        return by_token(Call(metadata=[("x", "y"), *(("authorization", header) for header in headers)]))

    assert name("Bearer one") == name("bearer  one ") == name("Bearer one", "Bearer two") != name("Bearer two")
    assert name("Bearer one") == "token-7692c3ad3540bb80"


def pem(common_name: str, names: Sequence[x509.GeneralName] | None) -> bytes:
    """Another key each time."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Acme, Inc."),
        x509.NameAttribute(NameOID.COMMON_NAME, common_name),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(subject))
        .issuer_name(x509.Name(subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def test_a_certificate_is_its_subject_or_its_uri() -> None:
    host = x509.DNSName("replica-7.example")
    spiffe = x509.UniformResourceIdentifier("spiffe://acme/ns/shop/sa/web")
    for names, expected in (
        (None, r"CN=one,O=Acme\, Inc."),
        ([host], r"CN=one,O=Acme\, Inc."),
        ([host, spiffe], spiffe.value),
    ):
        assert {by_certificate(Call(pem=pem("one", names))) for _ in range(2)} == {expected}


def test_what_tells_clients_apart_is_what_the_settings_verify() -> None:
    def chosen(**given: Any) -> identity.Identify:
        return identity.choose(Settings((Path("x"),), near_duplicates=True, **given))

    tls = {"tls_certificate": "c", "tls_key": "k", "tls_client_ca": "a"}
    assert chosen() is anyone
    assert chosen(tokens="t") is by_token
    assert chosen(**tls) is chosen(**tls, tokens="t") is by_certificate
    assert chosen(**tls, tokens="t", client_identity="token") is by_token
    assert chosen(client_identity="address") is by_address
    assert identity.choose(Settings((Path("x"),), tokens="t")) is anyone  # nobody asks
