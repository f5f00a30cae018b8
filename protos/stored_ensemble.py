"""An ensemble directory in memory, and the rule that turns what it stores into members."""

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from protos.ensemble_pb2 import EnsembleManifest, Member
from protos.graph import Graph, with_tensors

Tensors = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Probe:
    """What a server can compare its own answers with."""

    inputs: NDArray[np.generic]  # [N, ...], as a client sends them
    logits_MNC: NDArray[np.float32]  # of the members, in the manifest's order; [M, N, L, C] of next tokens


@dataclass(frozen=True)
class StoredEnsemble:
    """What a directory holds. From `validate()`, everything in it agrees with everything else."""

    manifest: EnsembleManifest
    graph: Graph
    weight_sets: dict[str, Tensors]
    statistics: dict[str, Tensors]
    probe: Probe | None = None
    manifest_sha256: str = ""  # of the bytes that were read

    def tensors(self, member: Member) -> Tensors:
        """The member's parameters, Σ coefficient · weight set, and its statistics, by initializer name.

        Summed in float64 and rounded once to the stored type.
        """
        terms = [(self.weight_sets[term.weight_set], term.coefficient) for term in member.terms if term.coefficient]
        if len(terms) == 1 and terms[0][1] == 1.0:
            weights = dict(terms[0][0])
        else:
            weights = {
                name: np.asarray(
                    sum(coefficient * weight_set[name].astype(np.float64) for weight_set, coefficient in terms)
                ).astype(first.dtype)
                for name, first in terms[0][0].items()
            }
        return weights | (self.statistics[member.statistics] if member.statistics else {})

    def model(self, member: Member) -> onnx.ModelProto:
        """The member as a model of its own: input → `logits`."""
        return with_tensors(self.graph.model, self.tensors(member))
