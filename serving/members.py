"""From what a directory stores to members that can run: each a network of its own, made from the weight sets."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from protos.ensemble_pb2 import Member
from protos.stored_ensemble import StoredEnsemble
from serving.engines.engine import Engine, Feeds, Network
from serving.skeleton import Skeleton


@dataclass(frozen=True)
class LoadedMember:
    network: Network
    feeds: Feeds = field(default_factory=dict)  # what this member gives to a network that it shares


def load(stored: StoredEnsemble, engine: Engine) -> list[LoadedMember]:
    """In the manifest's order, several at a time. Raises StartupError."""
    manifest = stored.manifest
    skeleton = Skeleton(stored.graph.model, {*manifest.parameter_names, *manifest.statistic_names})

    def materialise(member: Member) -> LoadedMember:
        return LoadedMember(engine.load(skeleton, stored.tensors(member)))

    with ThreadPoolExecutor(engine.threads) as pool:
        return list(pool.map(materialise, manifest.members))
