"""Fills protos/ensemble.proto from what the stages returned, and writes the ensemble directory."""

import importlib.metadata
import subprocess
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format

from protos import ensemble_pb2, manifest_file
from protos.ensemble_pb2 import (
    CLASSIFICATION,
    NEXT_TOKEN,
    CurvePoint,
    Endpoint,
    EnsembleManifest,
    FgeSnapshot,
    GaussianSample,
    Provenance,
    SseSnapshot,
    WeightAverage,
)
from protos.graph import DATATYPES, Graph
from protos.stored_ensemble import StoredEnsemble, Tensors
from protos.validate import MANIFEST
from trainer import cascade, conformal, evaluate, export, probe
from trainer.config import Config
from trainer.data import Splits
from trainer.member import Ensemble, Member
from trainer.network import Network
from trainer.temperature import temper

LIBRARIES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy", "scikit-learn")


def write(
    directory: Path,
    ensemble: Ensemble,
    baselines: dict[str, Ensemble],
    network: Network,
    graph: Graph,
    splits: Splits,
    config: Config,
    origin: Provenance,
) -> StoredEnsemble:
    """Writes the ensemble directory, and runs what was written against torch before it gets its name.

    baselines: what the ensemble should be compared with, by name; their quality goes into the manifest.
    origin: of the run, from `provenance`.
    Raises NotExportable or InvalidEnsemble, with that directory unchanged.
    """
    weight_sets = {
        identifier: export.weight_tensors(network, graph, weights)
        for identifier, weights in ensemble.weight_sets.items()
    }
    statistics: dict[str, Tensors] = {}
    for member in ensemble.members:
        if tensors := export.statistic_tensors(graph, member.statistics):
            statistics[member.id] = tensors
    manifest = EnsembleManifest(
        name=config.name,
        version=config.version,
        task=NEXT_TOKEN if splits.next_token else CLASSIFICATION,
        input=_input(graph),
        class_labels=splits.class_labels,
        members=[_member(member, splits, bool(statistics)) for member in ensemble.members],
        temperature=ensemble.temperature,
        provenance=origin,
    )
    manifest.created.GetCurrentTime()
    for name, predictor in ({"ensemble": ensemble} | baselines).items():
        for split in ("calibration", "test"):
            manifest.metrics.append(predictor.quality(splits, split).to_proto(name, split))
    if not splits.next_token:  # which no server answers
        _add_uncertainty(manifest, ensemble, splits, config.export.cascade_loss)

    # The file alone is the first member: an initializer must hold something, and this is worth having.
    first = StoredEnsemble(manifest, graph, weight_sets, statistics).model(manifest.members[0])
    first.producer_name = "thalweg"

    def agree(stored: StoredEnsemble) -> None:
        export.verify(stored, ensemble, splits.calibration.inputs, "calibration")

    return manifest_file.write(
        directory,
        manifest,
        first.SerializeToString(),
        weight_sets,
        statistics,
        approve=agree,
        probe=probe.of(ensemble, splits, config.export.probe_rows),
    )


def _add_uncertainty(manifest: EnsembleManifest, ensemble: Ensemble, splits: Splits, loss: float) -> None:
    """What policy cascade and prediction sets need, fitted on calibration; and what the cascade is worth."""
    logits_MNC, targets = ensemble.logits("calibration"), splits.calibration.labels
    manifest.conformal.append(
        conformal.to_proto("mean", conformal.scores(ensemble.probs("calibration"), targets)[:, None])
    )
    scores_NM = conformal.random_scores(logits_MNC, ensemble.temperatures, targets)
    manifest.conformal.append(conformal.to_proto("random", scores_NM))
    if (ts := _whole_curve(ensemble)) is not None:
        order = sorted(range(len(ts)), key=ts.__getitem__)
        chances = conformal.curve_chances([ts[i] for i in order])
        manifest.conformal.append(conformal.to_proto("curve", scores_NM[:, order], chances))
    if len(ensemble.members) == 1 or not loss:
        return
    fitted = cascade.fit(logits_MNC, ensemble.temperatures, ensemble.temperature, targets, loss)
    for split in ("calibration", "test"):
        probs, run = fitted.answer(ensemble.logits(split), ensemble.temperatures)
        quality = evaluate.quality(probs, splits.measured[split].labels)
        manifest.metrics.append(quality.to_proto("cascade", split))
        if split == "calibration":
            ids = [member.id for member in ensemble.members]
            manifest.cascade.CopyFrom(cascade.to_proto(fitted, ids, loss, float(run.double().mean())))
            manifest.conformal.append(conformal.to_proto("cascade", conformal.scores(probs, targets)[:, None]))


def _whole_curve(ensemble: Ensemble) -> list[float] | None:
    """Each member's t if they are points of a curve from 0 to 1, which policy curve needs; else None."""
    ts = [member.origin.t for member in ensemble.members if isinstance(member.origin, CurvePoint)]
    return ts if len(ts) == len(ensemble.members) > 1 and (min(ts), max(ts)) == (0.0, 1.0) else None


def members_there(directory: Path, origin: Provenance) -> int | None:
    """How many members a run of this origin has in the directory; 0: nothing is there, None: something else is."""
    if not directory.exists():
        return 0
    try:
        there = json_format.Parse((directory / MANIFEST).read_bytes(), EnsembleManifest())
    except (OSError, UnicodeDecodeError, json_format.ParseError):
        return None
    theirs = there.provenance
    return len(there.members) if (theirs.config, theirs.dataset) == (origin.config, origin.dataset) else None


def _input(graph: Graph) -> ensemble_pb2.Input:
    ((name, tensor),) = graph.inputs.items()
    (datatype,) = (datatype for datatype, dtype in DATATYPES.items() if dtype == tensor.dtype)
    return ensemble_pb2.Input(name=name, datatype=datatype, shape=tensor.shape[1:])


def _member(member: Member, splits: Splits, has_statistics: bool) -> ensemble_pb2.Member:
    message = ensemble_pb2.Member(
        id=member.id,
        terms=[ensemble_pb2.Term(weight_set=name, coefficient=value) for name, value in member.terms.items()],
        statistics=member.id if has_statistics else "",
        temperature=member.temperature,
    )
    match member.origin:
        case Endpoint():
            message.endpoint.CopyFrom(member.origin)
        case FgeSnapshot():
            message.fge_snapshot.CopyFrom(member.origin)
        case SseSnapshot():
            message.sse_snapshot.CopyFrom(member.origin)
        case WeightAverage():
            message.weight_average.CopyFrom(member.origin)
        case GaussianSample():
            message.gaussian_sample.CopyFrom(member.origin)
        case CurvePoint():
            message.curve_point.CopyFrom(member.origin)
    for split in ("train", "calibration"):
        probs = temper(member.logits[split], member.temperature)
        quality = evaluate.quality(probs, splits.measured[split].labels)
        message.metrics.append(quality.to_proto("member", split))
    return message


def provenance(config: Config, splits: Splits, start_sha256: Sequence[str] = ()) -> Provenance:
    """Where a run's ensembles come from. Reads all of the data and asks git: once a run is enough.

    start_sha256: of the files of `config.start`.
    """
    origin = Provenance(
        seeds=[config.seed],
        library_versions=library_versions(),
        dataset=ensemble_pb2.Dataset(
            name=splits.name,
            sha256=splits.sha256(),
            rows={name: len(split) for name, split in splits.by_name.items()},
        ),
        git_commit=git_commit(),
    )
    json_format.ParseDict(config.to_dict() | {"start_sha256": list(start_sha256)}, origin.config)
    return origin


def library_versions() -> dict[str, str]:
    versions = {}
    for library in ("thalweg", *LIBRARIES):
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue  # one of the two builds of ONNX Runtime is always absent
    return versions


def git_commit() -> str:
    """The checkout that this program runs from; empty if it does not run from one."""
    # A copy that was installed inside somebody's repository is not part of it.
    if not _git("ls-files", "--error-unmatch", Path(__file__).name):
        return ""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def _git(*arguments: str) -> str:
    """The output; empty if git is missing or fails."""
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
