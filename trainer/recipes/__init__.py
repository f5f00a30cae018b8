"""One file per recipe: a function of the seed that returns a Config, every number in sight."""

from collections.abc import Callable

from trainer.config import Config
from trainer.recipes.cifar100_robust import cifar100_robust
from trainer.recipes.digits import digits
from trainer.recipes.digits_paper import digits_paper
from trainer.recipes.digits_robust import digits_robust
from trainer.recipes.images import images
from trainer.recipes.paper_lstm import paper_lstm
from trainer.recipes.paper_preresnet110 import paper_preresnet110
from trainer.recipes.paper_preresnet164 import paper_preresnet164
from trainer.recipes.paper_vgg16 import paper_vgg16
from trainer.recipes.paper_wrn28_10 import paper_wrn28_10

RECIPES: dict[str, Callable[[int], Config]] = {
    "cifar100-robust": cifar100_robust,
    "digits": digits,
    "digits-paper": digits_paper,
    "digits-robust": digits_robust,
    "images": images,
    "paper-lstm": paper_lstm,
    "paper-preresnet110": paper_preresnet110,
    "paper-preresnet164": paper_preresnet164,
    "paper-vgg16": paper_vgg16,
    "paper-wrn28-10": paper_wrn28_10,
}
