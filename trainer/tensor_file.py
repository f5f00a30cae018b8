"""Tensors that were computed once, kept on disk: what they are of, and what is left of a file."""

import hashlib
import logging
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

logger = logging.getLogger(__name__)


def digest(*tensors: Tensor) -> str:
    """Of type, shape and every element."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.detach().contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """Empty without such a file, and for one that cannot be read, which the log names: it is computed anew."""
    if not path.exists():
        return {}
    try:
        return safetensors.torch.load(path.read_bytes())
    except safetensors.SafetensorError as error:
        logger.warning("unreadable path=%s error=%s", path, error)
        return {}
