"""From what a directory stores to networks that run: the members, and for a curve the network of all its points."""

import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum

from protos.ensemble_pb2 import Member
from protos.stored_ensemble import StoredEnsemble
from serving.networks.combined import Combined, opset
from serving.networks.curve import CurveGrid
from serving.networks.engines.call import Feeds, Network
from serving.networks.engines.engine import Engine
from serving.networks.fused import fused_skeleton, fused_tensors, groups
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
class LoadedGroup:
    members: slice
    network: Network  # logits [of these members, B, C]


@dataclass(frozen=True)
class Loaded:
    members: list[LoadedMember]  # in the manifest's order
    groups: list[LoadedGroup] = field(default_factory=list)  # of members that are fused as well
    combined: Combined | None = None  # of a curve's control points at least


def load(
    stored: StoredEnsemble,
    engine: Engine,
    memory: Memory = Memory.FAST,
    curve: CurveGrid | None = None,
    together: bool = True,
) -> Loaded:
    """Several networks at a time. curve: whose points will be asked for. Raises StartupError.

    together: requests may want all members, so they are fused where that is worth it.
    """
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

    def fuse(group: slice) -> LoadedGroup:
        tensors = [stored.tensors(member) for member in manifest.members[group]]
        return LoadedGroup(group, engine.load_fused(fused_skeletons[len(tensors)], fused_tensors(tensors)))

    worth_it = together and memory is Memory.FAST and _may_be_fused(stored, engine)
    fused = list(groups(len(manifest.members), engine.threads)) if worth_it else []
    fused_skeletons = {count: fused_skeleton(stored, count) for count in {group.stop - group.start for group in fused}}
    with ThreadPoolExecutor(engine.threads) as pool:
        loaded = Loaded(list(pool.map(make, manifest.members)), list(pool.map(fuse, fused)), combined)
    logger.info("networks made model=%s members=%d fused=%d", manifest.name, len(loaded.members), len(loaded.groups))
    return loaded


def _may_be_fused(stored: StoredEnsemble, engine: Engine) -> bool:
    parameters = sum(math.prod(stored.graph.initializers[name].dims) for name in stored.manifest.parameter_names)
    small = parameters <= engine.fused_parameters and len(stored.manifest.members) <= engine.fused_members
    return small and opset(stored.graph.model) >= 13


def _terms(member: Member) -> set[str]:
    return {term.weight_set for term in member.terms if term.coefficient}


def _is_combination(member: Member) -> bool:
    return len(_terms(member)) > 1
