"""`thalweg-train attack`: its arguments, and what it prints."""

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trainer.attack import harness
from trainer.attack.ball import NAMES
from trainer.attack.results import WHITE_BOX, Found, Options
from trainer.attack.table import cells, heads
from trainer.progress import Progress

OUT = Console(highlight=False, markup=False)


def add_parser(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        "attack", help="attack an exported ensemble, with its weights and without, with checks of the attacks"
    )
    parser.add_argument("directory", type=Path, help="an ensemble directory in the folder of its finished run")
    parser.add_argument("--norm", choices=("linf", "l2"), default=Options.norm, help="default: %(default)s")
    parser.add_argument("--epsilon", type=float, default=Options.epsilon,
                        help="radius in units of the raw rows, of images levels of 255 (default: what the run was "
                             "trained against, else 8, or 128 in L2)")  # fmt: skip
    parser.add_argument("--rows", type=int, default=Options.rows, metavar="N",
                        help="of the test split, equally spaced (default: %(default)s)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=Options.seed, help="of random starts (default: %(default)s)")
    parser.add_argument("--attacks", nargs="+", choices=WHITE_BOX, default=Options.attacks, help="default: all")
    parser.add_argument("--against", nargs="*", metavar="METHOD",
                        help="other ensembles of the run to attack beside (default: ind, or else fge)")  # fmt: skip
    for name, what in (
        ("pgd-steps", "of PGD"),
        ("pgd-restarts", "of PGD, from random points"),
        ("arc-steps", "of ARC"),
        ("arc-classes", "whose boundaries ARC looks at, the likeliest"),
        ("apgd-steps", "of APGD"),
        ("apgd-targets", "classes that APGD-T aims at, the likeliest wrong ones"),
        ("radius-steps", "of PGD at each other radius"),
        ("transfer-steps", "of PGD on a network that an outsider may have"),
    ):
        default = getattr(Options, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{what} (default: {default})")
    parser.add_argument("--queries", type=int, nargs="*", default=Options.queries, metavar="N",
                        help="of each row, for Square; no number: nobody asks (default: 1000 5000)")  # fmt: skip
    parser.add_argument("--repeat", type=int, nargs="+", default=Options.repeat, metavar="N",
                        help="how often each point is asked about, by policy random (default: 1 5 12 24)")  # fmt: skip
    parser.add_argument("--answers", nargs="+", default=Options.answers, metavar="KIND",
                        help="seen by Square: full, labels, rounded:N (--round-probs N) (default: full)")  # fmt: skip
    parser.add_argument("--outsider", default=Options.outsider, metavar="RUN",
                        help="another run, whose first network examples are made on (default: one of method ind that "
                             "no other method starts from)")  # fmt: skip
    parser.add_argument("--through", default=Options.through, metavar="HOST:PORT",
                        help="a live server of the ensemble, to be asked as any client may")  # fmt: skip
    parser.add_argument("--token-file", default=Options.token_file, metavar="FILE", help="a bearer token for it")
    parser.add_argument("--tls-authorities", default=Options.tls_authorities, metavar="PEM",
                        help="the connection is encrypted; these say who it is")  # fmt: skip
    parser.set_defaults(command=_attack)


def _attack(options: argparse.Namespace) -> None:
    given = {name: value for name, value in vars(options).items() if name in Options.__dataclass_fields__}
    for name in ("attacks", "against", "queries", "repeat", "answers"):
        given[name] = None if given[name] is None else tuple(given[name])
    outcome = harness.attack(options.directory, Options(**given), Progress())
    found = outcome.found
    OUT.print(_table(found))
    for check in found.checks:
        if not check.passed:
            OUT.print(f"CHECK FAILED: {check.name}: {check.detail}", soft_wrap=True)
    passed = sum(check.passed for check in found.checks)
    OUT.print(f"checks   {passed} of {len(found.checks)} passed")
    OUT.print(f"manifest {outcome.summary}", soft_wrap=True)
    OUT.print(f"report   {outcome.report}", soft_wrap=True)


def _table(found: Found) -> Table:
    options = found.options
    title = f"Accuracy in %, {found.rows} test rows, {NAMES[options.norm]} {options.epsilon:g}"
    table = Table(title=title, title_justify="left")
    first, *others = heads(found, full=False)
    table.add_column(first, min_width=22)
    for name in others:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    for line in cells(found, full=False):
        table.add_row(*line)
    return table
