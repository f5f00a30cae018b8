"""Keys and signatures for `thalweg-train keygen`, `sign` and `validate`. Needs the extra [sign]."""

import os
from pathlib import Path
from types import ModuleType

from protos.validate import IsTrusted, validate
from trainer.errors import UserError


def generate(path: Path) -> None:
    """Writes the private key, which nobody else may read, and beside it `.pub`. Raises FileExistsError."""
    private, public = _signature().generate()
    for file, data, mode in ((path, private, 0o600), (Path(f"{path}.pub"), public, 0o644)):
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(data)


def sign(directory: Path, key: Path) -> None:
    """Signs an ensemble that is valid. Raises UserError, InvalidEnsemble, OSError."""
    signature = _signature()
    validate(directory)
    try:
        signature.sign_directory(directory, key.read_bytes())
    except ValueError as error:
        raise UserError(f"'{key}': {error}") from None


def trust(key: Path) -> IsTrusted:
    """What `validate` asks. Raises UserError, OSError."""
    try:
        is_trusted: IsTrusted = _signature().trust(key.read_bytes())
    except ValueError as error:
        raise UserError(f"'{key}': {error}") from None
    return is_trusted


def _signature() -> ModuleType:
    try:
        from protos import signature
    except ImportError:
        raise UserError("signatures need the extra [sign]: pip install 'thalweg[sign]'") from None
    return signature
