"""φ(t), a curve through weight space, from its control points. Its coefficients are part of the contract."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos import ensemble_pb2
from protos.curve import CURVES

KINDS = {"bezier": ensemble_pb2.BEZIER, "polygonal-chain": ensemble_pb2.POLYGONAL_CHAIN}


@dataclass(frozen=True)
class Curve:
    kind: str  # of KINDS
    control_points: Sequence[Tensor]  # [endpoint, *bends, endpoint], each [P]

    @classmethod
    def straight(cls, kind: str, first: Tensor, last: Tensor, bends: int) -> "Curve":
        """The straight segment, with bends equally spaced on it."""
        interior = [torch.lerp(first, last, k / (bends + 1)) for k in range(1, bends + 1)]
        return cls(kind, [first, *interior, last])

    @property
    def bends(self) -> int:
        return len(self.control_points) - 2

    def coefficients(self, t: float) -> list[float]:
        """c_k(t), one for each control point. Raises ValueError for t outside [0, 1]."""
        return CURVES[KINDS[self.kind]](self.bends, t)

    def point(self, t: float, out: Tensor | None = None) -> Tensor:
        """φ(t) = Σ_k c_k(t) · w_k  [P], written into `out` if given. Exactly the endpoints at t = 0 and t = 1."""
        return self._combined(self.coefficients(t), out)

    def part(self, low: float, high: float) -> "Curve":
        """The stretch from t = low to t = high as a curve of its own: the same points, where t goes from 0 to 1 again.

        Of a Bezier curve by de Casteljau's algorithm: control point j is the blossom at low, degree − j times, and at
        high, j times; equal steps of t stay equal. Of a chain: the corners within, an equal share of t for each piece.
        """
        if self.kind == "polygonal-chain":
            corners = [k / (self.bends + 1) for k in range(1, self.bends + 1)]
            return Curve(self.kind, [self.point(t) for t in (low, *(t for t in corners if low < t < high), high)])
        degree = self.bends + 1
        control_points = []
        for j in range(degree + 1):
            blossom = torch.eye(degree + 1, dtype=torch.float64)
            for t in [low] * (degree - j) + [high] * j:
                blossom = torch.lerp(blossom[:-1], blossom[1:], t)
            control_points.append(self._combined(blossom[0].tolist()))
        return Curve(self.kind, control_points)

    def _combined(self, coefficients: Sequence[float], out: Tensor | None = None) -> Tensor:
        """Σ_k c_k · w_k, written into `out` if given."""
        terms = [(c, w) for c, w in zip(coefficients, self.control_points, strict=True) if c]
        first, *rest = terms
        point = torch.mul(first[1], first[0], out=out)
        for coefficient, control_point in rest:
            point.add_(control_point, alpha=coefficient)
        return point

    def length(self, pieces_a_bend: int = 1000) -> float:
        """Arc length ∫ ‖φ'(t)‖ dt, as the sum over a fine polygonal chain that has the curve's own corners."""
        pieces = pieces_a_bend * (self.bends + 1)
        return math.fsum(self.chords([i / pieces for i in range(pieces + 1)]))

    def chords(self, ts: Sequence[float]) -> list[float]:
        """‖φ(t_{i+1}) − φ(t_i)‖ for each two neighbours of ts."""
        # Σ_k Δc_k w_k: the Gram matrix gives every chord's length without forming it.
        points = torch.stack(list(self.control_points)).double()
        gram = points @ points.T
        steps = torch.tensor([self.coefficients(t) for t in ts], dtype=torch.float64).diff(dim=0)
        lengths: list[float] = torch.einsum("sk,kl,sl->s", steps, gram, steps).clamp(min=0).sqrt().tolist()
        return lengths
