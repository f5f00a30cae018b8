"""Whose ensembles are served: with `--require-signature`, those that one of its public keys has signed."""

from pathlib import Path

from protos.validate import IsTrusted
from serving.errors import StartupError


def trust(keys: str) -> IsTrusted | None:
    """keys: a PEM file; empty: everybody's are. Raises StartupError."""
    if not keys:
        return None
    try:
        from protos import signature  # what it needs is not installed everywhere

        return signature.trust(Path(keys).read_bytes())
    except ImportError:
        raise StartupError("--require-signature needs the extra [sign]: pip install 'thalweg[sign]'") from None
    except (OSError, ValueError) as error:
        raise StartupError(f"--require-signature {keys}: {error}") from None
