"""Saves where a stage is, so that a run killed at any moment goes on with the same command and ends with the same bits.

Under OUT/.checkpoints, one safetensors file an epoch and stage, the last two kept; what a stage hands on (snapshots,
an endpoint's earlier epochs) in files of its own, written once. Each appears by rename. The folder goes when the run
ends.
"""

import json
import logging
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from trainer import atomic_file
from trainer.config import completed
from trainer.errors import InvalidConfig
from trainer.ranks import ALONE, Ranks

logger = logging.getLogger(__name__)

KEPT_EPOCHS = 2
RNG = "torch-rng-state"
CUDA_RNG = "torch-cuda-rng-state"


@dataclass(frozen=True)
class State:
    epoch: int  # epochs done
    tensors: dict[str, Tensor]


class Checkpoints:
    """Of a whole run. every_s: least seconds between two saves of a stage; the last epoch is always saved.

    Of several ranks, the first alone writes; all read, so the folder is one that they share.
    """

    def __init__(self, out: Path, config: dict[str, Any], every_s: float, ranks: Ranks = ALONE) -> None:
        self.folder = out / ".checkpoints"
        self._every_s = every_s
        self._ranks = ranks
        self._claim(config)

    def _claim(self, config: dict[str, Any]) -> None:
        """Raises InvalidConfig if the folder holds a run with other settings: its steps would not be ours."""
        path = self.folder / "config.json"
        mine = json.loads(json.dumps(config))
        if path.exists() and any(self.folder.glob("*.safetensors")):
            theirs = json.loads(path.read_text())
            if changed := _differences(completed(theirs), completed(mine)):
                raise InvalidConfig(
                    f"'{self.folder.parent}' holds an unfinished run with other settings: {changed[0]}; "
                    f"go on with those, choose another --out, or add --restart"
                )
        if self._ranks.is_first:
            atomic_file.write_bytes(path, json.dumps(mine, indent=1).encode())

    def stage(self, name: str) -> "StageCheckpoints":
        return StageCheckpoints(self.folder, name, self._every_s, self._ranks)

    def finish(self) -> None:
        self._ranks.wait()  # until nobody reads here any more
        if self._ranks.is_first:
            shutil.rmtree(self.folder, ignore_errors=True)


class StageCheckpoints:
    def __init__(self, folder: Path, name: str, every_s: float, ranks: Ranks = ALONE) -> None:
        self._folder, self._name, self._every_s, self._ranks = folder, name, every_s, ranks
        self._last_save = time.monotonic()

    def load(self) -> State | None:
        """The newest state that can be read, torch's generators set as they were then; None to begin anew.

        Raises InvalidConfig if another rank reads another one.
        """
        state = self._newest()
        epoch = 0 if state is None else state.epoch
        if len(epochs := {int(other) for other in self._ranks.gather(torch.tensor(epoch))}) > 1:
            raise InvalidConfig(f"ranks find checkpoints of epochs {sorted(epochs)}; expected an --out that all share")
        return state

    def _newest(self) -> State | None:
        for epoch, path in sorted(self._epochs().items(), reverse=True):
            try:
                tensors = safetensors.torch.load(path.read_bytes())
                torch.set_rng_state(tensors.pop(RNG))
                if CUDA_RNG in tensors:
                    torch.cuda.set_rng_state(tensors.pop(CUDA_RNG))
            except (safetensors.SafetensorError, KeyError, RuntimeError, TypeError) as error:
                logger.warning("checkpoint unreadable path=%s error=%s", path, error)
                continue
            logger.info("resumed stage=%s epoch=%d", self._name, epoch)
            return State(epoch, tensors)
        return None

    def save(self, epoch: int, tensors: Mapping[str, Tensor], last: bool) -> None:
        """After `epoch` epochs; skipped if the last save is recent, unless this is the stage's last epoch."""
        now = time.monotonic()
        if not self._ranks.is_first or (not last and now - self._last_save < self._every_s):
            return
        whole = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
        whole[RNG] = torch.get_rng_state()
        if any(tensor.is_cuda for tensor in tensors.values()):
            whole[CUDA_RNG] = torch.cuda.get_rng_state()
        atomic_file.write_bytes(self._folder / f"{self._name}.epoch-{epoch}.safetensors", safetensors.torch.save(whole))
        for _, path in sorted(self._epochs().items())[:-KEPT_EPOCHS]:
            path.unlink()
        self._last_save = time.monotonic()

    def _epochs(self) -> dict[int, Path]:
        pattern = re.compile(rf"{re.escape(self._name)}\.epoch-(\d+)\.safetensors")
        paths = self._folder.iterdir() if self._folder.is_dir() else ()
        return {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}

    def keep(self, name: str, weights: Tensor) -> None:
        """Something that the stage hands on at its end."""
        if not self._ranks.is_first:
            return
        path = self._folder / f"{self._name}.{name}.safetensors"
        atomic_file.write_bytes(path, safetensors.torch.save({"weights": weights.detach().cpu()}))

    def kept(self, name: str) -> Tensor:
        return safetensors.torch.load((self._folder / f"{self._name}.{name}.safetensors").read_bytes())["weights"]


class NoCheckpoints(StageCheckpoints):
    """Of a stage that is not saved."""

    def __init__(self) -> None:
        super().__init__(Path(), "", 0.0)

    def load(self) -> None:
        return None

    def save(self, epoch: int, tensors: Mapping[str, Tensor], last: bool) -> None:
        pass

    def keep(self, name: str, weights: Tensor) -> None:
        pass


def loop_state(
    weights: list[Tensor], statistics: Mapping[str, Tensor], optimizer: torch.optim.SGD
) -> dict[str, Tensor]:
    """What a training loop needs to go on: weights, momentum, BatchNorm's running statistics."""
    state = {f"weights/{i}": vector for i, vector in enumerate(weights)}
    for i, vector in enumerate(weights):
        if (momentum := optimizer.state[vector].get("momentum_buffer")) is not None:
            state[f"momentum/{i}"] = momentum
    return state | {f"statistics/{name}": tensor for name, tensor in statistics.items()}


@torch.no_grad()
def restore_loop(
    state: State | None, weights: list[Tensor], statistics: Mapping[str, Tensor], optimizer: torch.optim.SGD
) -> int:
    """Puts a loop where `loop_state` saw it, and returns the epochs done: 0 without a state.

    Rates and decay stay the config's.
    """
    if state is None:
        return 0
    for i, vector in enumerate(weights):
        vector.copy_(state.tensors[f"weights/{i}"])
        if (momentum := state.tensors.get(f"momentum/{i}")) is not None:
            optimizer.state[vector]["momentum_buffer"] = momentum.to(vector.device)
    for name, tensor in statistics.items():
        tensor.copy_(state.tensors[f"statistics/{name}"])
    return state.epoch


def _differences(theirs: Any, mine: Any, path: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = sorted(theirs.keys() | mine.keys())
        return [
            line
            for key in keys
            for line in _differences(theirs.get(key), mine.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if theirs == mine else [f"{path} was {theirs!r} and is {mine!r}"]
