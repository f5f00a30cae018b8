"""From what a directory stores to networks that run: the members, and for a curve the network of all its points."""

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

from protos.ensemble_pb2 import Member
from protos.stored_ensemble import StoredEnsemble
from serving.networks.combined import Combined
from serving.networks.curve import CurveGrid
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.skeleton import Skeleton

logger = logging.getLogger(__name__)


class Memory(StrEnum):
    FAST = "fast"  # every member's weights are made when it is loaded
    COMPACT = "compact"  # members that are combinations are made as they run, from weight sets that are held once


@dataclass(frozen=True)
class LoadedMember:
    network: Network
    feeds: Feeds = field(default_factory=dict)  # what this member gives to a network that it shares


@dataclass(frozen=True)
class Loaded:
    members: list[LoadedMember]  # in the manifest's order
    combined: Combined | None = None  # of a curve's control points at least


def load(
    stored: StoredEnsemble, engine: Engine, memory: Memory = Memory.FAST, curve: CurveGrid | None = None
) -> Loaded:
    """Several networks at a time. curve: whose points will be asked for. Raises StartupError."""
    manifest = stored.manifest
    sharing = [member for member in manifest.members if memory is Memory.COMPACT and _is_combination(member)]
    needed = {name for member in sharing for name in _terms(member)} | set(curve.control_points if curve else ())
    weight_sets = [entry.id for entry in manifest.weight_sets if entry.id in needed]
    combined = Combined(stored, weight_sets, engine) if weight_sets else None
    skeleton = Skeleton(stored.graph.model, {*manifest.parameter_names, *manifest.statistic_names})

    def make(member: Member) -> LoadedMember:
        # A weight set that is held anyway, such as a curve's end, is not held again.
        if memory is Memory.COMPACT and combined and _terms(member) <= needed:
            return LoadedMember(combined.network, combined.member_feeds(stored, member))
        return LoadedMember(engine.load(skeleton, stored.tensors(member)))

    with ThreadPoolExecutor(engine.threads) as pool:
        loaded = Loaded(list(pool.map(make, manifest.members)), combined)
    logger.info("networks made model=%s members=%d", manifest.name, len(loaded.members))
    return loaded


def _terms(member: Member) -> set[str]:
    return {term.weight_set for term in member.terms if term.coefficient}


def _is_combination(member: Member) -> bool:
    return len(_terms(member)) > 1
