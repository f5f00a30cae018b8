"""What every step of an attack needs: the rows, where an adversary may move them, who is attacked, and the store."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from trainer.attack import scores
from trainer.attack.ball import Ball
from trainer.attack.results import Options
from trainer.attack.scores import Right
from trainer.attack.store import Store, Tensors
from trainer.attack.target import Target
from trainer.attack.white_box import Attack
from trainer.evaluate import BATCH_ROWS
from trainer.finished_run import FinishedRun
from trainer.progress import Progress
from trainer.seeding import seed_stage
from trainer.tensor_file import digest


@dataclass(frozen=True)
class Victim:
    """A predictor under attack."""

    name: str
    target: Target
    method: str  # of the run: whose members it has, or whose first one
    training_epochs: int | None  # of all the networks and curves that it needed; None where the run does not say
    digest: str  # of everything that its answers depend on


@dataclass(frozen=True)
class Attacking:
    run: FinishedRun
    options: Options  # resolved
    ball: Ball
    rows: Tensor  # raw [N, ...], on the CPU
    clean: Tensor  # the same as floats, where the network runs
    targets: Tensor  # [N], on the CPU
    store: Store
    progress: Progress

    def examples(self, attack: Attack, victim: Victim, ball: Ball | None = None) -> Tensors:
        """From the store: adversarial `rows` [N, ...], who is right on them (`members`, `mean`), and `seconds`."""
        within = ball or self.ball
        key = {
            "attack": attack.name,
            "settings": attack.settings,
            "ball": asdict(within),
            "seed": self.options.seed,
            "victim": victim.digest,
            "rows": digest(self.rows, self.targets),
        }
        return self.store.of(key, lambda: self._run(attack, victim, within))

    def right(self, stored: Tensors) -> Right:
        return Right(stored["members"], stored["mean"])

    def _run(self, attack: Attack, victim: Victim, ball: Ball) -> Tensors:
        moved, targets = [], self.targets.to(self.clean.device)
        batches = list(zip(self.clean.split(BATCH_ROWS), targets.split(BATCH_ROWS), strict=True))
        with self.progress.counting(f"{attack.name} on {victim.name}", len(batches), "batches") as seen:
            for done, (part, own) in enumerate(batches):
                seed_stage(self.options.seed, "attack", attack.name, done)
                moved.append(attack.run(victim.target, part, own, ball).cpu())
                seen(done + 1)
        rows = torch.cat(moved)
        right = scores.judge(victim.target, rows, self.targets)
        return {"rows": rows, "members": right.members_MN, "mean": right.mean_N}
