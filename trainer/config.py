"""Every setting of a run: one frozen dataclass per stage, checked when made, saved in the manifest.

A recipe (trainer/recipes/) is a function that returns a Config; `override` changes single fields by name.
"""

import dataclasses
import difflib
import json
import typing
from dataclasses import dataclass, field
from typing import Any

from protos.curve import MAX_BENDS
from protos.validate import IDENTIFIER, IDENTIFIER_RULE
from trainer.errors import InvalidConfig

METHODS = ("ind", "sse", "fge", "swa", "swag", "curve")
GREATEST = 1e9  # of any setting: a typing error, or infinity


@dataclass(frozen=True)
class DataConfig:
    source: str = "digits"  # or torchvision:NAME, folder:PATH, text:PATH, MODULE:FUNCTION (trainer/sources.py)
    root: str = "data"  # where torchvision keeps what it downloads
    classes: int = 0  # the first so many alone; 0: all
    train_rows: int = 300  # 0: all that the other splits leave
    calibration_rows: int = 300  # temperatures are fitted on these
    evaluation_rows: int = 0  # of train and of test each, equally spaced, on which predictors are measured; 0: all
    image_size: int = 0  # pixels to which images of other sizes are resized and cut; 0: as they are
    augment: str = "none"  # or "flip-crop", of training batches
    vocabulary: int = 10000  # of a text: its most frequent words, <unk> and <eos> among them
    window: int = 35  # tokens in a row of a text
    split_seed: int = 0  # of the split alone: `seed` does not move it, so runs stay comparable

    def __post_init__(self) -> None:
        if self.classes != 0:
            _at_least("data.classes", self.classes, 2)
        _at_least("data.train_rows", self.train_rows, 0)
        _at_least("data.evaluation_rows", self.evaluation_rows, 0)
        _at_least("data.image_size", self.image_size, 0)
        _at_least("data.vocabulary", self.vocabulary, 3)
        _at_least("data.window", self.window, 1)
        _one_of("data.augment", self.augment, ("none", "flip-crop"))
        _at_least("data.calibration_rows", self.calibration_rows, 1)
        _within("data.split_seed", self.split_seed, 0, 2**32, open_end=True)


@dataclass(frozen=True)
class ModelConfig:
    factory: str = "trainer.models.small_conv:small_conv"  # or torchvision:NAME, FILE.py:FUNCTION
    options: dict[str, Any] = field(default_factory=dict)  # arguments beside classes and in_channels


@dataclass(frozen=True)
class SgdConfig:
    batch_size: int = 50
    momentum: float = 0.9
    weight_decay: float = 5e-4  # L2 on every parameter; on a curve, on φ(t) itself
    clip_norm: float = 0.0  # greatest norm of a batch's gradient, before weight decay; 0: none. Recurrent networks
    accumulate: int = 1  # pieces of a batch that run one after the other: memory for time. BatchNorm sees the pieces

    def __post_init__(self) -> None:
        _at_least("sgd.batch_size", self.batch_size, 1)
        _within("sgd.momentum", self.momentum, 0.0, 1.0, open_end=True)
        _at_least("sgd.weight_decay", self.weight_decay, 0.0)
        _at_least("sgd.clip_norm", self.clip_norm, 0.0)
        _at_least("sgd.accumulate", self.accumulate, 1)


@dataclass(frozen=True)
class AdversaryConfig:
    """Of every training step: endpoints, FGE, SSE and curves (trainer/adversary.py). A step costs steps + 1 plain ones.

    Lengths are in units of the raw rows: of images, pixels from 0 to 255 (8 is what papers write as 8/255), and what
    is perturbed stays within them; float rows have units of their own and no bounds. Tokens cannot be perturbed.
    """

    norm: str = "none"  # or "linf", "l2"
    epsilon: float = 8.0  # greatest norm of a row's perturbation; an L2 ball wants more than an L∞ one
    steps: int = 7
    step_size: float = 2.0
    random_start: bool = True  # anywhere in the ball, instead of at the row itself

    def __post_init__(self) -> None:
        _one_of("adversary.norm", self.norm, ("none", "linf", "l2"))
        _above("adversary.epsilon", self.epsilon, 0.0)
        _within("adversary.steps", self.steps, 1, 1000, open_end=False)
        _above("adversary.step_size", self.step_size, 0.0)


@dataclass(frozen=True)
class EndpointConfig:
    epochs: int = 20
    learning_rate: float = 0.1  # constant for half of the run, linear to 1 % of it at 90 %, then flat

    def __post_init__(self) -> None:
        _at_least("endpoint.epochs", self.epochs, 1)
        _above("endpoint.learning_rate", self.learning_rate, 0.0)


@dataclass(frozen=True)
class FgeConfig:
    # Epochs of the first endpoint's run; FGE runs once from each. About 75 % of it (section 5).
    start_epochs: list[int] = field(default_factory=lambda: [15])
    epochs: int = 38  # the last half cycle of ten would collect nothing
    cycle_epochs: int = 4
    alpha_1: float = 0.5  # the largest rate of a cycle
    alpha_2: float = 0.01  # the smallest: a snapshot is taken right after the step at it
    runs: int = 1  # budgets: FGE is run from each of so many endpoints' checkpoints, and all snapshots are pooled
    noise: float = 0.0  # temperature of Langevin noise: 1 makes it cyclical SG-MCMC, 0 is the paper's plain SGD
    swag_samples: int = 10  # of method swag, from each run's Gaussian
    select: int = 0  # of all snapshots, how many to keep: the best on calibration, chosen one by one; 0: all
    trace_every: int = 0  # iterations between two points of the report's picture; 0: at snapshots only

    def __post_init__(self) -> None:
        if not self.start_epochs or len(set(self.start_epochs)) != len(self.start_epochs):
            raise InvalidConfig(f"fge.start_epochs is {self.start_epochs}; expected one or more different epochs")
        _at_least("fge.epochs", self.epochs, 1)
        _within("fge.runs", self.runs, 1, 1000, open_end=False)
        _at_least("fge.noise", self.noise, 0.0)
        _within("fge.swag_samples", self.swag_samples, 1, 1000, open_end=False)
        _at_least("fge.cycle_epochs", self.cycle_epochs, 1)
        _at_least("fge.select", self.select, 0)
        _at_least("fge.trace_every", self.trace_every, 0)
        _above("fge.alpha_2", self.alpha_2, 0.0)
        _above("fge.alpha_1", self.alpha_1, 0.0)
        if not self.alpha_1 > self.alpha_2:
            raise InvalidConfig(f"fge.alpha_1 is {self.alpha_1}; expected more than alpha_2, {self.alpha_2}")
        if self.cycle_epochs > self.epochs:
            raise InvalidConfig(
                f"fge.cycle_epochs is {self.cycle_epochs}; expected no more than the run has, fge.epochs {self.epochs}"
            )


@dataclass(frozen=True)
class IndConfig:
    runs: int = 3  # networks trained alone, from different initialisations

    def __post_init__(self) -> None:
        _within("ind.runs", self.runs, 2, 1000, open_end=False)


@dataclass(frozen=True)
class SseConfig:
    cycles: int = 5  # of one run from scratch; a snapshot at the end of each
    cycle_epochs: int = 4
    learning_rate: float = 0.1  # at the start of each cycle; falls along a cosine to nearly 0
    runs: int = 1  # budgets: all snapshots are pooled
    noise: float = 0.0  # as fge.noise

    def __post_init__(self) -> None:
        _within("sse.cycles", self.cycles, 1, 1000, open_end=False)
        _at_least("sse.cycle_epochs", self.cycle_epochs, 1)
        _above("sse.learning_rate", self.learning_rate, 0.0)
        _within("sse.runs", self.runs, 1, 1000, open_end=False)
        _at_least("sse.noise", self.noise, 0.0)


@dataclass(frozen=True)
class CurveConfig:
    kind: str = "bezier"  # or "polygonal-chain"
    bends: int = 1
    align: bool = False  # permute the second endpoint's hidden units so that they match the first one's
    start: str = "linear"  # of the bends: on the straight segment; or "random": a fresh initialisation each
    epochs: int = 150
    learning_rate: float = 0.1
    members: int = 21  # of the ensemble: equally spaced in t, both endpoints included
    select: int = 0  # of the members, how many to keep: the best on calibration, chosen one by one; 0: all
    grid: int = 61  # points at which curve and segment are evaluated for the report

    def __post_init__(self) -> None:
        _one_of("curve.kind", self.kind, ("bezier", "polygonal-chain"))
        _within("curve.bends", self.bends, 1, MAX_BENDS, open_end=False)
        _one_of("curve.start", self.start, ("linear", "random"))
        _at_least("curve.epochs", self.epochs, 1)
        _above("curve.learning_rate", self.learning_rate, 0.0)
        _at_least("curve.members", self.members, 2)
        _within("curve.select", self.select, 0, self.members, open_end=False)
        _at_least("curve.grid", self.grid, 2)


@dataclass(frozen=True)
class ExportConfig:
    """Of what ensemble directories hold beside their members."""

    probe_rows: int = 16  # of calibration, stored with every member's logits, for a server to compare with; 0: none
    # Of policy cascade: the share of rows, in expectation at most, that it gets wrong and all members right. Below one
    # in so many calibration rows nothing can be promised, and every member runs; 0: no cascade.
    cascade_loss: float = 0.001

    def __post_init__(self) -> None:
        _within("export.probe_rows", self.probe_rows, 0, 1000, open_end=False)
        _within("export.cascade_loss", self.cascade_loss, 0.0, 1.0, open_end=True)


@dataclass(frozen=True)
class Config:
    name: str = "digits"  # of the model, as a request calls it
    version: str = "1"
    seed: int = 0  # of weights, data order and positions on the curve
    threads: int = 0  # of torch; 0: as many as torch chooses. Results repeat bit for bit only at equal threads
    methods: list[str] = field(default_factory=lambda: ["fge", "curve"])  # of METHODS: one ensemble directory each
    # FILE or FILE@EPOCH each: trained networks (trainer/checkpoint_file.py) that replace the endpoints' training.
    start: list[str] = field(default_factory=list)
    device: str = "auto"  # "cpu", "cuda", or whichever there is
    checkpoint_seconds: float = 60.0  # least time between two checkpoints of a stage; its end is always saved
    precision: str = "fp32"  # or "bf16", "fp16" in training steps; weights, statistics and evaluation stay fp32
    channels_last: bool = False  # the layout of images in memory that GPUs convolve fastest
    compile: bool = False  # by torch.compile: minutes at the start, faster steps
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    sgd: SgdConfig = field(default_factory=SgdConfig)
    adversary: AdversaryConfig = field(default_factory=AdversaryConfig)
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    ind: IndConfig = field(default_factory=IndConfig)
    sse: SseConfig = field(default_factory=SseConfig)
    fge: FgeConfig = field(default_factory=FgeConfig)
    curve: CurveConfig = field(default_factory=CurveConfig)
    export: ExportConfig = field(default_factory=ExportConfig)

    def __post_init__(self) -> None:
        for field_name in ("name", "version"):
            if not IDENTIFIER.fullmatch(value := getattr(self, field_name)):
                raise InvalidConfig(f"{field_name} is {value!r}; expected {IDENTIFIER_RULE}")
        _within("seed", self.seed, 0, 2**63, open_end=True)
        _within("threads", self.threads, 0, 1024, open_end=False)
        if not self.methods or len(set(self.methods)) != len(self.methods) or set(self.methods) - set(METHODS):
            raise InvalidConfig(f"methods is {self.methods}; expected some of {', '.join(METHODS)}, each once")
        if (averages := {"swa", "swag"} & set(self.methods)) and "fge" not in self.methods:
            raise InvalidConfig(f"methods has {min(averages)}, which is made of FGE's snapshots; add fge")
        _at_least("checkpoint_seconds", self.checkpoint_seconds, 0.0)
        _one_of("device", self.device, ("auto", "cpu", "cuda"))
        _one_of("precision", self.precision, ("fp32", "bf16", "fp16"))
        self._check_start()
        for epoch in self.fge.start_epochs:
            if type(epoch) is not int:
                raise InvalidConfig(f"fge.start_epochs is {self.fge.start_epochs}; expected whole numbers")
            _within("fge.start_epochs", epoch, 1, self.endpoint.epochs, open_end=False)

    def _check_start(self) -> None:
        if not all(isinstance(file, str) and file for file in self.start):
            raise InvalidConfig(f"start is {self.start}; expected files, as FILE or FILE@EPOCH")
        for method, most in (("curve", 2), ("ind", self.ind.runs)):
            if method in self.methods and len(self.start) > most:
                raise InvalidConfig(f"start names {len(self.start)} files; {method} takes {most} networks at most")
        if self.start and "fge" in self.methods and self.fge.runs > 1:
            raise InvalidConfig(f"fge.runs is {self.fge.runs}; with start, FGE runs once from each file: expected 1")

    @property
    def endpoint_runs(self) -> int:
        """How many networks the methods need to begin with; they share them. The first are those of `start`."""
        needs = {"ind": self.ind.runs, "fge": self.fge.runs, "curve": 2}
        return max([1, len(self.start), *(needs[method] for method in self.methods if method in needs)])

    @property
    def fge_runs(self) -> int:
        """How often FGE is run: once from each start."""
        return len(self.start) or self.fge.runs * len(self.fge.start_epochs)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_dict(values: dict[str, Any]) -> Config:
    """The config whose `to_dict` this is. Raises InvalidConfig for fields that do not exist."""
    try:
        return typing.cast(Config, _build(Config, values))
    except (TypeError, KeyError, AttributeError) as error:
        raise InvalidConfig(f"the settings are not this version's: {error}") from None


def completed(values: dict[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version stored, and the defaults of those that it did not have yet."""
    return _complete(Config().to_dict(), values)


def _complete(defaults: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    return defaults | {
        name: _complete(defaults[name], value) if isinstance(value, dict) and name in defaults else value
        for name, value in values.items()
    }


def override(config: Config, assignments: list[str]) -> Config:
    """The config with fields set by "section.field=value"; the value is JSON, or else a bare string.

    Checked once all are set, so their order does not matter. Raises InvalidConfig for an unknown field (naming near
    ones), a value of another type, or out of range.
    """
    values = config.to_dict()
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise InvalidConfig(f"'{assignment}': expected FIELD=VALUE, such as fge.epochs=20")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        _set(Config, values, path.split("."), value, path)
    return typing.cast(Config, _build(Config, values))


def _set(kind: type, values: dict[str, Any], path: list[str], value: Any, whole: str) -> None:
    name, *rest = path
    if kind is dict and not rest:  # model.options: what they are is the network's to say
        values[name] = value
        return
    hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
    if name not in hints:
        near = difflib.get_close_matches(name, hints, n=3) or sorted(hints)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InvalidConfig(f"unknown setting '{whole}'{hint}")
    expected = typing.get_origin(hints[name]) or hints[name]
    if rest:
        _set(expected, values[name], rest, value, whole)
        return
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected:
        raise InvalidConfig(f"{whole} is {value!r}; expected {expected.__name__}")
    values[name] = value


def _build(kind: type, values: dict[str, Any]) -> Any:
    hints = typing.get_type_hints(kind)
    return kind(
        **{
            name: _build(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
            for name, value in values.items()
        }
    )


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InvalidConfig(f"{name} is '{value}'; expected {' or '.join(map(repr, choices))}")


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value <= GREATEST:
        raise InvalidConfig(f"{name} is {value}; expected {least} or more, up to {GREATEST:g}")


def _above(name: str, value: float, bound: float) -> None:
    if not bound < value <= GREATEST:
        raise InvalidConfig(f"{name} is {value}; expected more than {bound}, up to {GREATEST:g}")


def _within(name: str, value: float, low: float, high: float, *, open_end: bool) -> None:
    if not (low <= value < high or (value == high and not open_end)):
        raise InvalidConfig(f"{name} is {value}; expected {low} to {high}{' (exclusive)' if open_end else ''}")
