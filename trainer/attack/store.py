"""What attacks found, kept on disk: a second call computes nothing, a killed one goes on after the last whole attack.

One safetensors file each, named by a hash of everything that it depends on: networks, rows, attack, budgets, seed.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from trainer import atomic_file, tensor_file

Tensors = dict[str, Tensor]


class Store:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.computed = 0  # how often something had to be

    def of(self, key: Mapping[str, Any], compute: Callable[[], Tensors]) -> Tensors:
        """What was computed for this key, with `seconds` [] that it took. key: of what JSON can write."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
        path = self._folder / f"{name}.safetensors"
        if known := tensor_file.read(path):
            return known
        self.computed += 1
        start = time.monotonic()
        found = {name: tensor.cpu().contiguous() for name, tensor in compute().items()}
        found["seconds"] = torch.tensor(time.monotonic() - start, dtype=torch.float64)
        atomic_file.write_bytes(path, safetensors.torch.save(found))
        return found
