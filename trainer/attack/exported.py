"""What an attack without weights asks in this process: the exported graphs in ONNX Runtime, as a CPU server has them.

The same answers as target.py's up to rounding, without gradients; where torch itself runs on a CPU, some three times as
fast (docs/log.md), and such attacks ask millions of times.
"""

from functools import partial

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from protos.graph import DATATYPES
from trainer import export
from trainer.attack.oracle import as_sent
from trainer.attack.target import Target
from trainer.finished_run import FinishedRun


def load(run: FinishedRun, method: str, ensemble: Target) -> Target:
    """The same for asking: `ensemble`, of the first members of a method of the run; itself where the run has a GPU."""
    if run.network.placement.device.type != "cpu":
        return ensemble
    stored = run.ensembles[method]
    members = stored.manifest.members[: len(ensemble)]
    sessions = [export.session(stored.model(member), torch.get_num_threads()) for member in members]
    takes = stored.manifest.input
    networks = [partial(_logits, session, takes.name, DATATYPES[takes.datatype]) for session in sessions]
    return Target(networks, ensemble.temperatures, ensemble.temperature)


def _logits(session: onnxruntime.InferenceSession, name: str, dtype: np.dtype, rows: Tensor) -> Tensor:
    (logits,) = session.run(["logits"], {name: as_sent(rows, dtype)})
    return torch.from_numpy(logits)
