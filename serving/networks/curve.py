"""The curve that an ensemble's members lie on, as a place to draw networks from: everything that a network at t needs.

Weights at t are the control points, combined (`combined.py`). BatchNorm statistics and the temperature are interpolated
between the members to the left and right of t, linearly in t: recalibrating at every t would take the training data.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protos.curve import CURVES
from protos.ensemble_pb2 import EnsembleManifest, Member
from protos.stored_ensemble import StoredEnsemble
from serving.networks.combined import flatten


@dataclass(frozen=True)
class Point:
    coefficients: Mapping[str, float]  # by weight set
    statistics: NDArray[np.floating]  # [S], flat
    temperature: float


class NoCurve(ValueError):
    """The ensemble is no curve, and why."""


def grid(manifest: EnsembleManifest) -> list[Member]:
    """The members on the curve, from t = 0 to t = 1. Raises NoCurve."""
    members = [member for member in manifest.members if member.HasField("curve_point")]
    if not members:
        raise NoCurve(f"'{manifest.name}' is no curve: none of its members is a point of one")
    curves = {(m.curve_point.curve, m.curve_point.bends, *(term.weight_set for term in m.terms)) for m in members}
    if len(curves) > 1:
        raise NoCurve(f"the members of '{manifest.name}' lie on {len(curves)} curves; expected one")
    members.sort(key=lambda member: member.curve_point.t)
    ts = [member.curve_point.t for member in members]
    if (ts[0], ts[-1]) != (0.0, 1.0):
        raise NoCurve(f"the members of '{manifest.name}' reach from t = {ts[0]:g} to {ts[-1]:g}; expected 0 to 1")
    if any(a == b for a, b in itertools.pairwise(ts)):
        raise NoCurve(f"two members of '{manifest.name}' have the same t; expected one network at each")
    return members


class CurveGrid:
    """Networks at any t. Raises NoCurve for an ensemble that is none."""

    def __init__(self, stored: StoredEnsemble) -> None:
        members = grid(stored.manifest)
        point = members[0].curve_point
        self.control_points = [term.weight_set for term in members[0].terms]
        self._coefficients = CURVES[point.curve]
        self._bends = point.bends
        self._ts = np.array([member.curve_point.t for member in members])
        self._statistics = np.stack([flatten(stored, member) for member in members])
        self._temperatures = np.array([member.temperature for member in members])

    def at(self, t: float) -> Point:
        right = int(np.clip(np.searchsorted(self._ts, t), 1, len(self._ts) - 1))
        left = right - 1
        share = (t - self._ts[left]) / (self._ts[right] - self._ts[left])
        return Point(
            dict(zip(self.control_points, self._coefficients(self._bends, t), strict=True)),
            ((1 - share) * self._statistics[left] + share * self._statistics[right]).astype(self._statistics.dtype),
            float((1 - share) * self._temperatures[left] + share * self._temperatures[right]),
        )
