"""The curves between two endpoints, as coefficients of their control points.

φ(t) = Σ_k c_k(t) · w_k over the n + 2 control points w_0 (endpoint), w_1 … w_n (bends), w_{n+1} (endpoint).
Part of the contract, since a manifest stores the control points and each member's coefficients: the trainer
makes them here, and validate() recomputes them here. Source: Garipov et al. 2018, section 3.2, appendix A.1.
"""

import math
from collections.abc import Callable

from protos.ensemble_pb2 import BEZIER, POLYGONAL_CHAIN, Curve

MAX_BENDS = 100  # far beyond any use; binomial coefficients of a thousand overflow


def bezier(bends: int, t: float) -> list[float]:
    """Bernstein polynomials: c_k(t) = C(n+1, k) · t^k · (1 − t)^(n+1−k). Appendix A.1.

    bends: 0 to MAX_BENDS, the trained control points; 0 gives the straight segment. t: in [0, 1].
    Returns n + 2 coefficients that sum to 1. Raises ValueError outside those ranges.
    """
    _check(bends, t)
    degree = bends + 1
    return [math.comb(degree, k) * t**k * (1.0 - t) ** (degree - k) for k in range(degree + 1)]


def polygonal_chain(bends: int, t: float) -> list[float]:
    """Linear interpolation between neighbouring control points, equal shares of t each. Appendix A.1.

    φ(t) = (n+1) · ((t − i/(n+1)) · w_{i+1} + ((i+1)/(n+1) − t) · w_i)   for i/(n+1) ≤ t ≤ (i+1)/(n+1)

    Arguments, result and errors as in `bezier`.
    """
    _check(bends, t)
    pieces = bends + 1
    i = min(int(t * pieces), bends)  # t = 1 belongs to the last piece
    share = t * pieces - i
    coefficients = [0.0] * (bends + 2)
    coefficients[i], coefficients[i + 1] = 1.0 - share, share
    return coefficients


CURVES: dict[Curve, Callable[[int, float], list[float]]] = {BEZIER: bezier, POLYGONAL_CHAIN: polygonal_chain}


def _check(bends: int, t: float) -> None:
    if not 0 <= bends <= MAX_BENDS:
        raise ValueError(f"bends is {bends}; expected 0 to {MAX_BENDS}")
    if not 0.0 <= t <= 1.0:
        raise ValueError(f"t is {t}; expected a number in [0, 1]")
