"""`thalweg-train sanitize`: its arguments, and what it prints."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from trainer import chosen_config
from trainer.progress import Progress
from trainer.sanitize import report
from trainer.sanitize.repair import SETTINGS, repair
from trainer.sanitize.results import MARGIN, MARGIN_UNKNOWN, METHODS, Options

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

OUT = Console(highlight=False, markup=False)


def add_parser(commands: "Commands") -> None:
    parser = commands.add_parser(
        "sanitize", help="repair a network that may have been tampered with, from a little clean data"
    )
    chosen_config.add_arguments(parser)
    parser.add_argument("--suspect", required=True, metavar="FILE[@EPOCH]",
                        help="the network: a state_dict of torch or safetensors")  # fmt: skip
    parser.add_argument("--second", default="", metavar="FILE[@EPOCH]",
                        help="another one, for the curve's other end (default: the same, permuted)")  # fmt: skip
    parser.add_argument("--rows", type=int, metavar="N", help="clean rows to repair with: data.train_rows")
    parser.add_argument("--trigger", default="", metavar="REFERENCE",
                        help="FILE.py:FUNCTION or MODULE:FUNCTION, from raw rows to rows with the trigger")  # fmt: skip
    parser.add_argument("--target", default="", metavar="CLASS", help="the class that the trigger brings")
    parser.add_argument("--rates", type=float, nargs="+", default=(), metavar="RATE",
                        help="learning rates to try each method with (default: curve.learning_rate)")  # fmt: skip
    parser.add_argument("--keep-away", type=float, metavar="T",
                        help="export no member so near to an end of the curve (default: "
                             f"{MARGIN:g}, {MARGIN_UNKNOWN:g} without --trigger)")  # fmt: skip
    parser.add_argument("--between", type=float, nargs=2, metavar=("LOW", "HIGH"),
                        help="of a curve, the members to export, by t (default: those that are best)")  # fmt: skip
    parser.add_argument("--allow-untrusted", action="store_true", help="export members near the ends all the same")
    parser.add_argument("--method", choices=METHODS, default="",
                        help="export the best of this method, in place of what is recommended")  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder for the results (default: runs/RECIPE-sanitized)")
    parser.add_argument("--restart", action="store_true", help="discard what was trained there before")
    parser.set_defaults(command=_sanitize)


def _sanitize(options: argparse.Namespace) -> None:
    rows = [] if options.rows is None else [f"data.train_rows={options.rows}"]
    config = chosen_config.chosen(options, [*SETTINGS, *rows])
    wanted = Options(
        options.suspect,
        options.second,
        options.trigger,
        options.target,
        tuple(options.rates),
        options.keep_away,
        options.between,
        options.allow_untrusted,
        options.method,
    )
    out = options.out or Path("runs", f"{options.recipe}-sanitized")
    outcome = repair(config, wanted, out, Progress(), options.restart)
    results = outcome.results
    OUT.print(_table("Along the curve, test rows; *: may be exported; heads: rate", *report.curve_table(results)))
    OUT.print(
        _table(
            "Repaired networks, test rows; *: recommended; changed: answered otherwise than by the suspect",
            *report.summary_table(results),
        )
    )
    OUT.print(results.rule, soft_wrap=True)
    OUT.print(report.verdict(results), soft_wrap=True)
    OUT.print(f"ensemble {outcome.ensemble}", soft_wrap=True)
    OUT.print(f"report   {outcome.report}", soft_wrap=True)


def _table(title: str, heads: list[str], lines: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number else "left", no_wrap=number == 0)
    for line in lines:
        table.add_row(*line)
    return table
