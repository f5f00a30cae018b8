"""The short version in the manifest: what attacks left of the accuracy, for whoever opens the ensemble alone."""

from pathlib import Path

from protos import manifest_file
from protos.ensemble_pb2 import EnsembleManifest, Robustness
from protos.validate import SIGNATURE
from trainer.attack.results import CLEAN, WORST, Found, Line

SIGNED = (
    "left alone: it is signed, and any change would void the signature; remove manifest.sig, attack again, "
    "which computes nothing anew, and sign"
)


def write(directory: Path, found: Found) -> str:
    """Replaces the manifest's summary of an earlier attack; says what became of it. A signed one stays as it is."""
    if (directory / SIGNATURE).exists():
        return SIGNED
    entries = _entries(found)

    def change(manifest: EnsembleManifest) -> None:
        del manifest.robustness[:]
        manifest.robustness.extend(entries)

    try:
        manifest_file.amend(directory, change)
    except (ValueError, OSError) as error:  # the report is there; it needs no summary
        return f"left alone: {error}"
    return f"has a summary, {len(entries)} lines"


def _entries(found: Found) -> list[Robustness]:
    """Of the attacked ensemble: clean, the worst with the weights, and every attack without them."""
    own = [line for line in found.lines if line.predictor == found.method]
    kept = [line for line in own if line.attack in (CLEAN, WORST) or line.kind in ("transfer", "black-box")]
    return [_entry(found, line) for line in kept if line.accuracy.mean and line.accuracy.all_members]


def _entry(found: Found, line: Line) -> Robustness:
    accuracy = line.accuracy
    assert accuracy.mean
    assert accuracy.all_members
    return Robustness(
        attack=line.attack,
        norm=found.options.norm,
        epsilon=0.0 if line.kind == "clean" else found.options.epsilon,
        rows=accuracy.rows,
        expected_accuracy=accuracy.expected.value,
        mean_accuracy=accuracy.mean.value,
        all_members_accuracy=accuracy.all_members.value,
    )
