"""The attacks of an adversary who has no weights of what is served: transfer, Square, repeated queries.

A policy of the server is an oracle each: `random` and `curve` draw, `mean` does not, nor does one network. What is
found is scored exactly, over all members; networks of a continuous t cannot be enumerated, and count by passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer import finished_run
from trainer.attack import exported, oracle, repeat, scores, transfer
from trainer.attack.attacking import Attacking, Victim
from trainer.attack.ball import floats
from trainer.attack.curve_points import random_point
from trainer.attack.oracle import Oracle
from trainer.attack.results import Line
from trainer.attack.scores import Accuracy, Right
from trainer.attack.store import Tensors
from trainer.attack.target import RawToLogits
from trainer.errors import InvalidConfig, UserError
from trainer.seeding import seed_stage
from trainer.tensor_file import digest

if TYPE_CHECKING:
    from trainer.attack.server import ServerOracle  # needs grpcio

SAME = 0.01  # of a probability: by so much less the answers of a server and of its members in torch differ


@dataclass(frozen=True)
class Way:
    """How a predictor answers, and how often it is asked about each point."""

    policy: str  # random, curve or mean
    ask: Oracle
    answers: str  # full, rounded:N or labels
    times: int = 1
    draws: bool = True  # whether equal rows may be answered differently
    live: bool = False  # a server does

    @property
    def name(self) -> str:
        square = f"Square ×{self.times}" if self.times > 1 else "Square"
        coarse = self.answers if self.answers != "full" else ""
        return ", ".join(filter(None, (square, self.policy, coarse, "live" if self.live else "")))


def attack(this: Attacking, victims: Sequence[Victim]) -> Iterator[Line]:
    """Everything, on each predictor. The first is the ensemble, whom the server serves; it alone is asked repeatedly.

    Raises UserError for a live server that cannot be asked, or serves something else.

    On one core of a virtual machine, digits and small_conv: 0.014 ms a query of one member, 0.053 of the mean of five,
    0.057 of a network of the curve. So 500 rows and 5,000 queries take 35, 134 and 142 s; rows that are fooled save.
    """
    yield from transfers(this, victims)
    if not this.options.queries:
        return
    if this.rows.dim() != 4:
        this.progress.say(f"no Square attack: rows are {list(this.rows.shape[1:])}, and no images")
        return
    ensemble, *others = victims
    yield from lines(this, ensemble, times=this.options.repeat, curve=ensemble.name == "curve")
    for victim in others:
        yield from lines(this, victim, times=[1], curve=False)
    if this.options.through:
        with _server(this, ensemble) as server:
            yield from through(this, ensemble, server)


def lines(this: Attacking, victim: Victim, *, times: Sequence[int], curve: bool) -> Iterator[Line]:
    """What Square leaves of a predictor, at each budget.

    times: how often each point is asked about, of policy `random`. curve: by the run's policy `curve` as well.
    """
    for way in _ways(this, victim, times, curve):
        if budgets := _budgets(this, way):
            key = {
                "attack": "Square",
                "policy": way.policy if way.draws else "fixed",
                "settings": {"answers": way.answers, "times": way.times, "queries": budgets},
                "ball": asdict(this.ball),
                "seed": this.options.seed,
                "victim": victim.digest,
                "rows": digest(this.rows, this.targets),
            }
            stored = this.store.of(key, partial(_search, this, victim, way, budgets))
            yield from _lines(stored, victim, way, budgets)


def through(this: Attacking, victim: Victim, server: "ServerOracle") -> Iterator[Line]:
    """The same, against a live server of that ensemble. Nothing is stored: a server may be another one tomorrow.

    Raises UserError if what the server answers is none of the ensemble's answers.
    """
    _check_same(server(floats(this.rows)), victim, server, floats(this.rows))
    draws = server.policy != "mean"
    for times in sorted(set(this.options.repeat)) if draws else [1]:
        way = Way(server.policy, server, server.answers, times, draws, live=True)
        if budgets := _budgets(this, way):
            yield from _lines(_search(this, victim, way, budgets), victim, way, budgets)


def transfers(this: Attacking, victims: Sequence[Victim]) -> Iterator[Line]:
    """Each predictor on examples that were made with each network that an outsider may have."""
    settings = {"steps": this.options.transfer_steps}
    for name, network in _surrogates(this):
        key = {
            "attack": f"transfer from {name}",
            "settings": settings,
            "ball": asdict(this.ball),
            "seed": this.options.seed,
            "network": digest(network(this.clean[:16])),  # whatever it is, it is what answers so
            "rows": digest(this.rows, this.targets),
        }
        stored = this.store.of(key, partial(_made_on, this, name, network))
        for victim in victims:
            accuracy = scores.judge(victim.target, stored["rows"], this.targets).accuracy()
            yield Line(f"from {name}", "transfer", victim.name, accuracy, settings, float(stored["seconds"]))


def _ways(this: Attacking, victim: Victim, times: Sequence[int], curve: bool) -> Iterator[Way]:
    asked = exported.load(this.run, victim.method, victim.target)
    point = _random_point(this) if curve and len(asked) > 1 else None
    for answers in this.options.answers:
        mean = oracle.disclosing(oracle.mean(asked), answers)
        if len(asked) == 1:  # beside every policy of the others it answers as ever
            yield Way("random", mean, answers, draws=False)
        else:
            drawn = oracle.disclosing(oracle.random_member(asked), answers)
            for count in sorted(set(times)):
                yield Way("random", drawn, answers, count)
        if point is not None:
            yield Way("curve", oracle.disclosing(point, answers), answers)
        yield Way("mean", mean, answers, draws=False)


def _random_point(this: Attacking) -> Oracle | None:
    """None where no server could draw from the curve either."""
    try:
        return random_point(this.run)
    except InvalidConfig as error:
        this.progress.say(f"no attack on policy curve: {error}")
        return None


def _server(this: Attacking, victim: Victim) -> "ServerOracle":
    try:
        from trainer.attack.server import ServerOracle  # noqa: PLC0415, RUF100 - optional
    except ImportError:
        raise InvalidConfig(
            "--through needs the package grpcio; install it with: pip install 'thalweg[attack]'"
        ) from None
    options, manifest = this.options, this.run.ensembles[victim.name].manifest
    return ServerOracle(
        options.through,
        manifest.name,
        this.rows,
        len(manifest.class_labels),
        token=Path(options.token_file).read_text().strip() if options.token_file else None,
        authorities=Path(options.tls_authorities) if options.tls_authorities else None,
    )


def _budgets(this: Attacking, way: Way) -> list[int]:
    """Those that allow one point at least."""
    return [budget for budget in sorted(set(this.options.queries)) if budget >= way.times]


def _search(this: Attacking, victim: Victim, way: Way, budgets: list[int]) -> Tensors:
    """By budget: `rows` [N, ...], `asked`, who is right: `members` [M, N], `mean` [N], or of a curve `passed` [N]."""
    seed_stage(this.options.seed, "attack", "Square", way.policy if way.draws else "fixed", way.times)
    with this.progress.counting(f"{way.name}, on {victim.name}", budgets[-1] // way.times, "points") as seen:
        calls = iter(range(1, budgets[-1] + 1))

        def ask(rows: Tensor) -> Tensor:
            answers = way.ask(rows)
            seen(next(calls))
            return answers

        snapshots = repeat.attack(
            ask,
            floats(this.rows),
            this.targets,
            this.ball,
            budgets,
            way.times,
            deduplicate=way.answers == "full",
            stop_when_fooled=not way.draws,
        )
    stored: Tensors = {"seconds": torch.zeros(())}
    for found in snapshots:
        budget = found.queries
        stored |= {f"rows-{budget}": found.rows, f"asked-{budget}": torch.tensor(found.asked)}
        if way.policy == "curve":
            stored[f"passed-{budget}"] = oracle.accuracy(way.ask, found.rows, this.targets)
        else:
            right = scores.judge(victim.target, found.rows, this.targets)
            stored |= {f"members-{budget}": right.members_MN, f"mean-{budget}": right.mean_N}
    return stored


def _lines(stored: Tensors, victim: Victim, way: Way, budgets: list[int]) -> Iterator[Line]:
    """Of the budgets at which anything was answered at all."""
    for budget in budgets:
        if asked := int(stored[f"asked-{budget}"]):
            settings: dict[str, Any] = {"queries a row": budget, "in all": asked, "answers": way.answers}
            name = f"{way.name}, {budget:,} queries"
            kind = "live" if way.live else "black-box"
            yield Line(name, kind, victim.name, _accuracy(stored, budget), settings, float(stored["seconds"]))


def _accuracy(stored: Tensors, budget: int) -> Accuracy:
    if (passed_N := stored.get(f"passed-{budget}")) is not None:
        return Accuracy(len(passed_N), scores.wilson(float(passed_N.mean()), len(passed_N)), None, None)
    return Right(stored[f"members-{budget}"], stored[f"mean-{budget}"]).accuracy()


@torch.no_grad()
def _check_same(answers_NC: Tensor, victim: Victim, server: "ServerOracle", clean: Tensor) -> None:
    if server.policy == "curve" or server.answers == "labels":
        return
    candidates_MNC = (
        victim.target.mean(clean)[None] if server.policy == "mean" else victim.target.log_probs(clean).exp()
    )
    off = float((candidates_MNC.cpu() - answers_NC).abs().amax(2).amin(0).max())
    if off > SAME + 10.0**-server.decimals:
        raise UserError(
            f"'{server.address}' serves another ensemble than {victim.name}: an answer is {off:.3f} from the nearest "
            f"that policy '{server.policy}' has"
        )


def _surrogates(this: Attacking) -> Iterator[tuple[str, RawToLogits]]:
    if "curve" in this.run.ensembles:
        yield "a public endpoint", transfer.public_endpoint(this.run)
    if this.options.outsider:
        other = finished_run.load(Path(this.options.outsider))
        yield "an outsider", transfer.from_another_run(other, this.run.splits)
    elif (outsider := transfer.outsider(this.run)) is not None:
        yield "an outsider", outsider


def _made_on(this: Attacking, name: str, network: RawToLogits) -> Tensors:
    seed_stage(this.options.seed, "attack", "transfer", name)
    return {"rows": transfer.examples(network, this.rows, this.targets, this.ball, this.options.transfer_steps)}
