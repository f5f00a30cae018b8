"""A network that the user trained elsewhere, as a start: a plain state_dict in torch's format or as safetensors.

Read with weights_only, so a file can hold tensors and nothing that runs.
"""

import hashlib
import io
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.errors import InvalidConfig
from trainer.network import Network
from trainer.reference import first_line

KEYS = ("state_dict", "model_state_dict", "model")  # under which a training script's checkpoint keeps it
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name


@dataclass(frozen=True)
class Start:
    reference: str  # FILE or FILE@EPOCH
    epochs: int  # that went into it; 0: nobody said
    sha256: str  # of the file
    weights: Tensor  # [P]


def load(network: Network, reference: str, setting: str = "start") -> Start:
    """The network's weights from FILE or FILE@EPOCH, a tied tensor under any of its names.

    BatchNorm's statistics are checked for shape alone, since every member gets its own; other buffers must be the
    module's. setting: what named the file.
    Raises InvalidConfig, in one line, for a file of another network.
    """
    path, epochs = path_and_epochs(reference)
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InvalidConfig(f"{setting} is '{path}': {error.strerror}") from error
    try:
        weights = _weights(network, _unwrap(_read(data, path), network.module.state_dict().keys()))
    except InvalidConfig as error:
        raise InvalidConfig(f"{setting} '{path}' {error}") from error
    return Start(reference, epochs, hashlib.sha256(data).hexdigest(), weights)


def path_and_epochs(reference: str) -> tuple[str, int]:
    """Of FILE@EPOCH; 0 epochs if nobody said."""
    match = re.fullmatch(r"(.+)@([0-9]{1,9})", reference)
    return (match[1], int(match[2])) if match else (reference, 0)


def _read(data: bytes, path: str) -> dict[str, Tensor]:
    """The file's state_dict. Raises InvalidConfig for anything but tensors by name."""
    try:
        if path.endswith(".safetensors"):
            content: Any = safetensors.torch.load(data)
        else:
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"holds {found[1]}, which is no tensor" if found else "is no file that torch.load reads as weights_only"
        raise InvalidConfig(f"{what}; expected a state_dict") from error
    except Exception as error:  # a damaged file fails in many ways
        raise InvalidConfig(f"cannot be read: {first_line(error)}") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in KEYS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping) or not content:
        raise InvalidConfig(f"holds a {type(content).__name__} without tensors; expected a state_dict")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InvalidConfig(
                f"holds a {type(value).__name__} under '{name}'; expected a state_dict: tensors by name"
            )
    return {str(name): value.detach() for name, value in content.items()}


def _unwrap(tensors: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """Without the prefixes of wrappers, if none of the module's own names has them."""
    for wrapper in WRAPPERS * 2:  # either may hold the other
        if all(name.startswith(wrapper) for name in tensors) and not any(name.startswith(wrapper) for name in expected):
            tensors = {name.removeprefix(wrapper): tensor for name, tensor in tensors.items()}
    return tensors


def _weights(network: Network, tensors: dict[str, Tensor]) -> Tensor:
    """[P]. Raises InvalidConfig unless these are the network's tensors: no more, no fewer, of its shapes and types."""
    module, expected = network.module, network.module.state_dict()
    parameters = dict(module.named_parameters())
    given: dict[str, list[str]] = {name: [] for name in parameters}  # the file's names for each parameter
    for name in tensors:
        if (stored := network.stored_names.get(name)) in given:
            given[stored].append(name)
    shared = [name for name in tensors if name in expected]

    faults = []
    if missing := [name for name, found in given.items() if not found]:
        faults.append(f"{_count(missing, 'key')} missing ({_few(missing)})")
    if unexpected := [name for name in tensors if name not in expected]:
        faults.append(f"{_count(unexpected, 'key')} unexpected ({_few(unexpected)})")
    if reshaped := [name for name in shared if tensors[name].shape != expected[name].shape]:
        first = reshaped[0]
        more = f" (and {len(reshaped) - 1} more differ)" if len(reshaped) > 1 else ""
        shape, ours = list(tensors[first].shape), list(expected[first].shape)
        faults.append(f"{first} is {shape}; the network for these data has {ours}{more}")
    of_parameters = [name for names in given.values() for name in names]
    if retyped := [name for name in of_parameters if tensors[name].dtype != expected[name].dtype]:
        first = retyped[0]
        more = f" (and {len(retyped) - 1} more differ)" if len(retyped) > 1 else ""
        faults.append(f"{first} is {tensors[first].dtype}; expected {expected[first].dtype}{more}")
    if faults:
        hint = _prefix_hint(list(tensors), list(expected)) if missing else ""
        raise InvalidConfig(f"is not of this network: {'; '.join(faults)}{hint}")

    for names in given.values():
        if not tensors[names[0]].isfinite().all():
            raise InvalidConfig(f"holds values in {names[0]} that are not finite")
        if odd := [name for name in names[1:] if not torch.equal(tensors[name], tensors[names[0]])]:
            raise InvalidConfig(f"has different tensors for {names[0]} and {odd[0]}, which are tied in the network")
    batchnorm = {name for name, layer in module.named_modules(remove_duplicate=False) if isinstance(layer, _BatchNorm)}
    for name in shared:
        if name in of_parameters or name.rpartition(".")[0] in batchnorm:
            continue
        if not torch.allclose(tensors[name].double(), expected[name].double(), equal_nan=True):
            raise InvalidConfig(f"has another buffer '{name}' than the network; only BatchNorm's may differ")
    return network.flatten({name: tensors[names[0]] for name, names in given.items()})


def _prefix_hint(theirs: Sequence[str], ours: Sequence[str]) -> str:
    for longer, shorter, whose in ((theirs, ours, "the file"), (ours, theirs, "the network")):
        for prefix in (longer[0][: dot.end()] for dot in re.finditer(r"\.", longer[0])):
            if all(name.startswith(prefix) for name in longer) and any(prefix + name in longer for name in shorter):
                return f"; all keys of {whose} begin with '{prefix}'"
    return ""


def _count(names: Sequence[str], noun: str) -> str:
    return f"{len(names)} {noun}{'' if len(names) == 1 else 's'}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
