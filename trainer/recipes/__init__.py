"""One file per recipe: a function of the seed that returns a Config, every number in sight."""

from collections.abc import Callable

from trainer.config import Config
from trainer.recipes.digits import digits

RECIPES: dict[str, Callable[[int], Config]] = {"digits": digits}
