"""Who vouches for an ensemble: an Ed25519 signature (RFC 8032) of the manifest's bytes, in `manifest.sig` beside it.

The manifest has the hash of every other file, so its signature covers them all. Needs the extra [sign].
"""

import re
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protos import staging
from protos.validate import SIGNATURE, IsTrusted, read_manifest

_PUBLIC_KEY = re.compile(rb"-----BEGIN PUBLIC KEY-----.*?-----END PUBLIC KEY-----", re.DOTALL)


def generate() -> tuple[bytes, bytes]:
    """A new private key (PKCS #8, not encrypted) and its public key, both PEM."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return private, public


def sign(manifest: bytes, private_pem: bytes) -> bytes:
    """64 bytes. Raises ValueError for a key of another kind, or an encrypted one."""
    try:
        key = serialization.load_pem_private_key(private_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(f"no private key in PEM without a password: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"the key is of {type(key).__name__}; expected Ed25519")
    return key.sign(manifest)


def sign_directory(directory: Path, private_pem: bytes) -> None:
    """Writes `manifest.sig`, in place of one that is there. Raises ValueError, InvalidEnsemble, OSError."""
    staging.replace_within(directory, SIGNATURE, sign(read_manifest(directory), private_pem))


def trust(public_pem: bytes) -> IsTrusted:
    """Whether a manifest was signed by one of these keys; several while one replaces another. Raises ValueError."""
    keys: list[Ed25519PublicKey] = []
    for block in _PUBLIC_KEY.findall(public_pem):
        try:
            key = serialization.load_pem_public_key(block)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ValueError(f"no public key in PEM: {error}") from None
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"the key is of {type(key).__name__}; expected Ed25519")
        keys.append(key)
    if not keys:
        raise ValueError("there is no public key in PEM")

    def is_trusted(manifest: bytes, signature: bytes) -> bool:
        return any(_verifies(key, manifest, signature) for key in keys)

    return is_trusted


def _verifies(key: Ed25519PublicKey, manifest: bytes, signature: bytes) -> bool:
    try:
        key.verify(signature, manifest)
    except InvalidSignature:
        return False
    return True
