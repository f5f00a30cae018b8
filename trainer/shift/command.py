"""`thalweg-train shift RUN`: its options, and what it prints."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from trainer.progress import Progress
from trainer.shift import report
from trainer.shift.results import METRICS, Options, Shifted
from trainer.shift.study import study

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HEADS = {  # of results.METRICS, as narrow as a terminal wants
    "error": "error %",
    "nll": "NLL",
    "calibration": "cal. err",
    "coverage": "cover %",
    "size": "set size",
    "aurc": "AURC %",
}
OUT = Console(highlight=False, markup=False)


def add_parser(commands: "Commands") -> None:
    shift = commands.add_parser(
        "shift", help="measure a finished run on corrupted test rows and on rows of other data sets"
    )
    shift.add_argument("run", type=Path, help="the folder of a finished run")
    shift.add_argument("--ood", nargs="+", default=Options.ood, metavar="SOURCE",
                       help="rows of other distributions, such as torchvision:FashionMNIST")  # fmt: skip
    shift.add_argument("--rows", type=int, default=Options.rows, metavar="N",
                       help="of the test rows and of each source, at most; 0: all (default: %(default)s)")  # fmt: skip
    shift.add_argument("--level", type=float, default=Options.level,
                       help="of prediction sets, as the server's parameter (default: %(default)s)")  # fmt: skip
    shift.set_defaults(command=_shift)


def _shift(options: argparse.Namespace) -> None:
    outcome = study(options.run, Options(options.ood, options.rows, options.level), Progress())
    found = outcome.found
    OUT.print(_summary(found))
    for source in found.options.ood:
        OUT.print(_table(f"Rows of {source}, told from the test rows", *report.foreign_table(found, source)))
    for what, why in found.absent.items():
        OUT.print(f"no {what}: {why}", soft_wrap=True)
    OUT.print(f"report   {outcome.report}", soft_wrap=True)


def _summary(found: Shifted) -> Table:
    """A line for clean rows, and one for the mean over all corrupted ones."""
    lines = []
    for entry in found.predictors:
        line = [entry.predictor, "clean\nshifted" if entry.corrupted else "clean"]
        for name in HEADS:
            metric = METRICS[name]
            values = [metric.of(entry.clean), *([entry.corrupted_mean(metric.of)] if entry.corrupted else [])]
            line.append("\n".join(f"{value:.{metric.digits}f}" for value in values))
        lines.append(line)
    return _table(f"{found.rows['test']} test rows", ["predictor", "rows", *HEADS.values()], lines)


def _table(title: str, heads: list[str], lines: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for head in heads:
        words = head in ("predictor", "rows")
        table.add_column(head, justify="left" if words else "right", no_wrap=words, overflow="fold")
    for line in lines:
        table.add_row(*line)
    return table
