"""Section 4.3: ensembles of 50 points of a polygonal chain, without and with temperatures, and of independent networks.

On the runs of Table 2, which are trained first if they are not there. With temperatures: each network's own, and that
of the mean.

python -m benchmarks.reproduce.section43 --points 25
python -m benchmarks.reproduce.section43 --network preresnet164 --seeds 1      # a GPU: the paper's numbers
"""

import sys

from benchmarks.record import spread
from benchmarks.reproduce.experiment import PROGRESS, parser, publish, seeds
from benchmarks.reproduce.table2 import NETWORKS, chain, chain_config
from trainer import evaluation
from trainer.evaluation_results import Options
from trainer.scores import Score

PAPER = {"endpoint pair": ("22.0", ""), "independent": ("21.01", ""), "chain": ("21.03", "20.7")}


def main() -> int:
    options_of = parser(__doc__, NETWORKS, "table2")
    options_of.add_argument("--points", type=int, default=50, help="of the chain; the paper's: %(default)s")
    options = options_of.parse_args()
    found: dict[int, dict[str, Score]] = {}
    for seed in seeds(options):
        wanted = Options(points=3, members=(options.points,), plane=0)
        scores = {
            score.predictor: score
            for score in evaluation.evaluate(chain(options, seed), wanted, PROGRESS).evaluation.scores
        }
        scores["chain"] = scores.pop(f"curve, {options.points} points")
        found[seed] = {name: scores[name] for name in ("single network", *PAPER)}
        errors = "  ".join(f"{name} {100 * score.quality.error:.2f} %" for name, score in found[seed].items())
        print(f"seed {seed}: {errors}", flush=True)
    behind = {
        seed: {
            name: {"untempered": vars(score.untempered), "tempered": vars(score.quality)} for name, score in by.items()
        }
        for seed, by in found.items()
    }
    publish(options, "section43", table(found), chain_config(options, seed), found=behind)
    return 0


def table(found: dict[int, dict[str, Score]]) -> list[str]:
    """Without and with temperatures, beside the paper's."""
    lines = [
        "| ensemble | networks | error %, no temperatures | NLL | error %, temperatures | NLL "
        "| paper, ResNet-164, error % without, with |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in next(iter(found.values())):
        scores = [by[name] for by in found.values()]
        cells = [name, str(scores[0].members)]
        for qualities in ([score.untempered for score in scores], [score.quality for score in scores]):
            cells += [spread([100 * q.error for q in qualities], 2), spread([q.nll for q in qualities], 4)]
        lines.append(f"| {' | '.join(cells)} | {', '.join(filter(None, PAPER.get(name, ())))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
