"""A few rows with what torch answered to them, for the ensemble directory: whoever serves it can compare."""

from protos.stored_ensemble import Probe
from trainer.data import Splits
from trainer.member import Ensemble

MOST_BYTES = 2**22  # of rows and logits; what one row takes, if that is more


def of(ensemble: Ensemble, splits: Splits, most: int) -> Probe | None:
    """At most so many rows of calibration, equally spaced, with every member's logits; None if `most` is 0."""
    split = splits.calibration
    logits_MNC = ensemble.logits("calibration")
    if splits.next_token:
        logits_MNC = logits_MNC.unflatten(1, split.targets.shape)  # [M, N, L, C]
    row_bytes = split.inputs[0].nbytes + logits_MNC[:, 0].nbytes
    rows = min(most, len(split), max(MOST_BYTES // row_bytes, 1))
    if not rows:
        return None
    chosen = split.spread_indices(rows)
    return Probe(split.inputs[chosen].cpu().numpy(), logits_MNC[:, chosen].contiguous().numpy())
