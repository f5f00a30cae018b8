"""Signatures made by us and by openssl, and every way in which one can be wrong."""

import shutil
import subprocess
from pathlib import Path

import pytest

from protos import signature
from protos.validate import InvalidEnsemble, Violation, validate
from tests import tiny_ensemble


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    tiny_ensemble.write(tmp_path / "tiny")
    return tmp_path / "tiny"


def violation(directory: Path, *public: bytes) -> Violation:
    with pytest.raises(InvalidEnsemble) as caught:
        validate(directory, signature.trust(b"".join(public)))
    return caught.value.violation


def test_a_signed_directory_is_valid_for_who_trusts_the_key_and_for_who_does_not_ask(directory: Path) -> None:
    private, public = signature.generate()
    _, other = signature.generate()
    assert violation(directory, public) is Violation.UNSIGNED
    signature.sign_directory(directory, private)
    assert len((directory / "manifest.sig").read_bytes()) == 64
    validate(directory)
    validate(directory, signature.trust(public))
    validate(directory, signature.trust(other + public))  # while one key replaces another
    assert violation(directory, other) is Violation.WRONG_SIGNATURE
    assert [path.name for path in directory.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize("data", [b"", bytes(64), bytes(63), bytes(10_000)])
def test_other_bytes_are_no_signature(directory: Path, data: bytes) -> None:
    (directory / "manifest.sig").write_bytes(data)
    validate(directory)
    assert violation(directory, signature.generate()[1]) is Violation.WRONG_SIGNATURE


def test_a_byte_of_the_manifest_is_enough(directory: Path) -> None:
    private, public = signature.generate()
    signature.sign_directory(directory, private)
    path = directory / "manifest.json"
    path.write_bytes(path.read_bytes() + b" ")
    validate(directory)
    assert violation(directory, public) is Violation.WRONG_SIGNATURE


def test_the_signature_is_asked_for_before_the_manifest_is_read(directory: Path) -> None:
    _, public = signature.generate()
    (directory / "manifest.json").write_text("[" * 100_000)
    assert violation(directory, public) is Violation.UNSIGNED
    (directory / "manifest.sig").write_bytes(bytes(64))
    assert violation(directory, public) is Violation.WRONG_SIGNATURE


def test_a_link_is_no_signature(directory: Path) -> None:
    private, public = signature.generate()
    signature.sign_directory(directory, private)
    (directory / "manifest.sig").rename(directory.parent / "outside")
    (directory / "manifest.sig").symlink_to(directory.parent / "outside")
    assert violation(directory, public) is Violation.SYMLINK


def test_a_new_ensemble_in_the_same_place_has_to_be_signed_anew(directory: Path) -> None:
    private, public = signature.generate()
    signature.sign_directory(directory, private)
    tiny_ensemble.write(directory, members=2)
    assert violation(directory, public) is Violation.UNSIGNED


@pytest.mark.parametrize("pem", [b"", b"no key", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"])
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    with pytest.raises(ValueError, match="key in PEM"):
        signature.trust(pem)
    with pytest.raises(ValueError, match="no private key in PEM"):
        signature.sign(b"", pem)


openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@openssl
def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", tmp_path / "ec"], check=True
    )
    subprocess.run(["openssl", "ec", "-in", tmp_path / "ec", "-pubout", "-out", tmp_path / "ec.pub"], check=True)
    with pytest.raises(ValueError, match="expected Ed25519"):
        signature.sign(b"", (tmp_path / "ec").read_bytes())
    with pytest.raises(ValueError, match="expected Ed25519"):
        signature.trust((tmp_path / "ec.pub").read_bytes())


@openssl
def test_openssl_makes_and_reads_the_same(directory: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    manifest, made = directory / "manifest.json", directory / "manifest.sig"
    key, public = tmp_path / "key", tmp_path / "key.pub"
    run("genpkey", "-algorithm", "ed25519", "-out", key)
    run("pkey", "-in", key, "-pubout", "-out", public)
    run("pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", manifest, "-out", made)
    validate(directory, signature.trust(public.read_bytes()))
    theirs = made.read_bytes()
    signature.sign_directory(directory, key.read_bytes())
    assert made.read_bytes() == theirs
    run("pkeyutl", "-verify", "-pubin", "-inkey", public, "-rawin", "-in", manifest, "-sigfile", made)
