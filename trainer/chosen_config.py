"""The config that a command line asks for: RECIPE, and what --seed, --model, --data and --set change in it."""

import argparse
import difflib
import json
from collections.abc import Sequence

from trainer.config import Config, override
from trainer.errors import InvalidConfig
from trainer.recipes import RECIPES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help=", ".join(sorted(RECIPES)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="another network: torchvision:NAME, MODULE:FUNCTION or FILE.py:FUNCTION")
    parser.add_argument(
        "--data", help="other data: digits, torchvision:NAME, folder:PATH, text:PATH, MODULE:FUNCTION, FILE.py:FUNCTION"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", dest="assignments",
                        help="change a setting, such as curve.kind=polygonal-chain; may be repeated")  # fmt: skip


def chosen(options: argparse.Namespace, assignments: Sequence[str] = ()) -> Config:
    """assignments: the command's own, "FIELD=VALUE"; what the user sets comes after them. Raises InvalidConfig."""
    if options.recipe not in RECIPES:
        near = difflib.get_close_matches(options.recipe, RECIPES, n=3) or sorted(RECIPES)
        raise InvalidConfig(f"there is no recipe '{options.recipe}'; did you mean {', '.join(near)}?")
    shorthands = {"model.factory": options.model, "data.source": options.data}
    given = [f"{name}={json.dumps(value)}" for name, value in shorthands.items() if value is not None]
    if options.model is not None:
        given.insert(0, "model.options={}")  # the recipe's are another network's
    return override(RECIPES[options.recipe](options.seed), [*given, *assignments, *options.assignments])
