"""FGE's α1 and c, SSE's α0 and M for Table 1: by NLL on the calibration split, with a seed of its own.

The authors chose them so (section 6). Prints a line a trial of one budget; test rows play no part.

python -m benchmarks.reproduce.tuning --first-seed 90
"""

import sys

import torch

from benchmarks.reproduce.experiment import PROGRESS, config, parser
from benchmarks.reproduce.table1 import NETWORKS
from trainer import data, fge, member, pipeline, snapshots, sse, train
from trainer.config import FgeConfig, SseConfig
from trainer.network import Placement
from trainer.objective import Objective
from trainer.seeding import seed_stage

FGE_EPOCHS = {2: 11, 4: 10}  # by c: the last quarter of the budget, up to a snapshot
SSE_CYCLES = (2, 4)


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "tuning")
    options_of.add_argument("--rates", type=float, nargs="+", default=[0.1, 0.2, 0.4], help="of α1 and of α0")
    options_of.add_argument("--methods", nargs="+", default=["fge", "sse"])
    options = options_of.parse_args()
    settings = config(options, NETWORKS, options.first_seed)
    torch.set_num_threads(settings.threads or torch.get_num_threads())
    splits = data.load(settings.data)
    seed_stage(settings.seed, "network")
    network = pipeline.build_network(settings, splits)
    network.to(Placement(training_dtype=pipeline.DTYPES[settings.precision], channels_last=settings.channels_last))
    objective, budget = Objective(network), settings.endpoint.epochs

    def run(method: str, about: str, start: torch.Tensor, cycle: snapshots.Cycle, epochs: int) -> None:
        seed_stage(settings.seed, method, 0)
        with PROGRESS.stage(about, epochs) as stage:
            taken = snapshots.collect(method, objective, splits.train, start, cycle, epochs, settings.sgd, stage)
        members = [member.snapshot(network, splits, method, 0, one) for one in taken]
        report(about, member.assemble(method, {}, members, splits))

    def report(about: str, ensemble: member.Ensemble) -> None:
        quality, untempered = (ensemble.quality(splits, "calibration", tempered) for tempered in (True, False))
        train_error = float(ensemble.members[0].logits["train"].argmax(1).ne(splits.train.labels).double().mean())
        print(
            f"{about} members={len(ensemble.members)} error={100 * quality.error:.2f}% nll={quality.nll:.4f} "
            f"untempered={untempered.nll:.4f} first_train_error={100 * train_error:.2f}%",
            flush=True,
        )

    if "fge" in options.methods:
        seed_stage(settings.seed, "endpoint", 0)
        keep = [budget - epochs for epochs in FGE_EPOCHS.values()]
        with PROGRESS.stage("endpoint", budget) as stage:
            kept = train.endpoint(objective, splits.train, settings.endpoint, settings.sgd, stage, keep)
        report("ind", member.endpoints(network, splits, "single", [member.End(kept[budget], budget)]))
        for c, epochs in FGE_EPOCHS.items():
            for rate in options.rates:
                alphas = FgeConfig(epochs=epochs, cycle_epochs=c, alpha_1=rate, alpha_2=rate / 100)
                cycle = fge.cycle(splits.train, alphas, settings.sgd)
                run("fge", f"fge c={c} alpha_1={rate}", kept[budget - epochs], cycle, epochs)
    for cycles in SSE_CYCLES if "sse" in options.methods else ():
        for rate in options.rates:
            cycle = sse.cycle(splits.train, SseConfig(cycles, budget // cycles, rate), settings.sgd)
            seed_stage(settings.seed, "sse", 0)
            run("sse", f"sse M={cycles} alpha_0={rate}", network.initial_weights(), cycle, budget)
    return 0


if __name__ == "__main__":
    sys.exit(main())
