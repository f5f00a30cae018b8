"""A network as a function of one flat weight vector: what every stage trains, moves, combines and evaluates.

The module is not rewritten: its parameters are views into the vector, handed over by `torch.func.functional_call`,
so any nn.Module works and a curve costs one weighted sum a step.
"""

import contextlib
import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.config import ModelConfig
from trainer.errors import InvalidConfig
from trainer.ranks import ALONE, Ranks
from trainer.reference import first_line, resolve
from trainer.synced_batchnorm import sync

Statistics = dict[str, Tensor]
CPU = torch.device("cpu")
FP16_LOSS_SCALE = 1024.0  # lifts small gradients above fp16's least, 6e-8; one above 64 would overflow: it diverges


@dataclass(frozen=True)
class Placement:
    """Where and how a network runs. Changes speed and rounding, not meaning."""

    device: torch.device = CPU
    training_dtype: torch.dtype = torch.float32  # that training steps compute in (torch.autocast)
    channels_last: bool = False  # of images: the layout that GPUs convolve fastest
    compiled: bool = False  # by torch.compile
    ranks: Ranks = ALONE

    @property
    def loss_scale(self) -> float:
        """By which a loss is multiplied before it is differentiated."""
        return FP16_LOSS_SCALE if self.training_dtype is torch.float16 else 1.0


class Network:
    """`factory` makes a freshly initialised module; `preprocess` turns raw inputs into what the module takes.

    stored_names: the name under which each parameter and floating-point buffer is stored, by every name that it
    has in the module; tied tensors have several. Raises InvalidConfig for a module that cannot be one vector.
    """

    def __init__(self, factory: Callable[[], nn.Module], preprocess: nn.Module) -> None:
        self._factory = factory
        self.preprocess = preprocess
        self.module = factory()
        if not isinstance(self.module, nn.Module):
            raise InvalidConfig(f"the model's factory returned a {type(self.module).__name__}; expected an nn.Module")
        self.placement = Placement()
        self._run = self.output
        parameters = dict(self.module.named_parameters())
        if len({(parameter.dtype, parameter.device) for parameter in parameters.values()}) != 1:
            raise InvalidConfig("the network's parameters differ in type or device, or there are none; expected one")
        if frozen := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
            raise InvalidConfig(f"parameter '{frozen[0]}' is frozen; expected all of them to be trained")
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._sizes = [parameter.numel() for parameter in parameters.values()]
        persistent = self.module.state_dict()
        self._buffers = [
            name for name, buffer in self.module.named_buffers() if buffer.is_floating_point() and name in persistent
        ]
        stored = {id(parameter): name for name, parameter in parameters.items()}
        stored |= {id(self.module.get_buffer(name)): name for name in self._buffers}
        everything = (
            *self.module.named_parameters(remove_duplicate=False),
            *self.module.named_buffers(remove_duplicate=False),
        )
        self.stored_names = {name: stored[id(tensor)] for name, tensor in everything if id(tensor) in stored}

    @property
    def size(self) -> int:
        """P, the number of parameters; tied ones count once."""
        return sum(self._sizes)

    def initial_weights(self) -> Tensor:
        """A fresh initialisation [P], drawn from torch's global generator."""
        return self.flatten(dict(self._factory().named_parameters())).to(self.placement.device)

    def to(self, placement: Placement) -> None:
        """Raises InvalidConfig for a BatchNorm that cannot run on several ranks."""
        self.module.to(placement.device)
        self.preprocess.to(placement.device)
        if placement.ranks.count > 1:
            sync(self.module, placement.ranks)
        self._run = torch.compile(self.output) if placement.compiled else self.output
        self.placement = placement

    def initial_statistics(self) -> Statistics:
        """A copy of the module's floating-point buffers, by name: BatchNorm's running mean and variance, and others."""
        return {name: self.module.get_buffer(name).detach().clone() for name in self._buffers}

    def copy_buffers(self, statistics: Statistics) -> Statistics:
        """Copies of `statistics` and of all other buffers, for training passes that must leave no trace in any."""
        buffers = dict(self.module.named_buffers()) | statistics
        return {name: buffer.detach().clone() for name, buffer in buffers.items()}

    def check_buffers(self, statistics: Statistics) -> None:
        """Raises InvalidConfig if training moved a buffer that is not BatchNorm's: nothing could recalibrate it."""
        layers = {name for name, layer in self.module.named_modules() if isinstance(layer, _BatchNorm)}
        for name, tensor in statistics.items():
            if name.rpartition(".")[0] not in layers and not torch.equal(tensor, self.module.get_buffer(name)):
                raise InvalidConfig(
                    f"training changes buffer '{name}', which is no BatchNorm statistic; members could not share it"
                )

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Parameters by name, as one vector [P]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self._shapes])

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """Views into the vector [P], by parameter name."""
        parts = weights.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def output(self, weights: Tensor, statistics: Statistics, inputs: Tensor) -> Tensor:
        """Inputs on the network's device to what the module gives, in its mode: training updates `statistics` in place.

        Never compiled: what hooks on layers need.
        """
        rows = self.preprocess(inputs)
        if self.placement.channels_last and rows.dim() == 4:
            rows = rows.to(memory_format=torch.channels_last)
        return functional_call(self.module, (self.unflatten(weights), statistics), (rows,))  # type: ignore[no-any-return]

    def logits(self, weights: Tensor, statistics: Statistics, inputs: Tensor) -> Tensor:
        """The module's output as [B, C], one line a prediction: of a next-token network [B·L, C], row by row."""
        return self._run(weights, statistics, inputs.to(self.placement.device)).flatten(0, -2)

    def training_loss(
        self,
        weights: Tensor,
        statistics: Statistics,
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> Tensor:
        """The batch's loss in training mode and precision, for autograd; moves `statistics`.

        targets: [B], or [B, L] of next tokens.
        """
        self.module.train()
        device, dtype = self.placement.device, self.placement.training_dtype
        mixed = dtype is not torch.float32
        with torch.autocast(device.type, dtype, enabled=mixed):
            logits = self.logits(weights, statistics, inputs)
        return loss(logits.float() if mixed else logits, targets.to(device).flatten())

    def gradient(
        self,
        weights: Tensor,
        statistics: Statistics,
        inputs: Tensor,
        targets: Tensor,
        loss: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The batch's loss and its gradient [P] with respect to the weights, in training mode."""
        point = weights.detach().requires_grad_()
        value = self.training_loss(point, statistics, inputs, targets, loss)
        scale = self.placement.loss_scale
        (gradient,) = torch.autograd.grad(value if scale == 1.0 else value * scale, point)
        return value.detach(), gradient if scale == 1.0 else gradient.div_(scale)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode; afterwards every submodule has the mode that it had."""
        modes = {module: module.training for module in self.module.modules()}
        try:
            self.module.eval()
            yield
        finally:
            for module, mode in modes.items():
                module.training = mode


class Normalise(nn.Module):
    """(x − mean) / std by channel, from raw inputs of any type. In the exported graph, so clients send raw pixels.

    A channel that is constant in the training data (std 0) is only shifted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], input_axes: int) -> None:
        super().__init__()
        shape = (1, -1, *(1,) * (input_axes - 2))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape))
        spread = [value if value > 0 else 1.0 for value in std]
        self.register_buffer("std", torch.tensor(spread, dtype=torch.float32).view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.float32) - self.mean) / self.std


def build(
    config: ModelConfig,
    preprocess: nn.Module,
    classes: int,
    in_channels: int,
    say: Callable[[str], None] = lambda line: None,
) -> Network:
    """The network that a config names. Raises InvalidConfig if its factory cannot be found or called so.

    The factory gets the options, and of `classes`, `num_classes` and `in_channels` those that it has arguments for.
    With torchvision's pretrained `weights` the number of classes is theirs, and the last layer a fresh one if the
    data's is another; `say` is told.
    """
    kind, _, name = config.factory.partition(":")
    if kind == "torchvision":
        factory, arguments = _torchvision(name), {"num_classes": classes}
        if config.options.get("weights"):
            factory, arguments = _pretrained(factory, classes, say), {}
    else:
        factory = resolve(config.factory, "model.factory")
        offered = {"classes": classes, "num_classes": classes, "in_channels": in_channels}
        taken = inspect.signature(factory).parameters
        arguments = {name: value for name, value in offered.items() if name in taken}
    try:
        return Network(lambda: factory(**(arguments | config.options)), preprocess)
    except InvalidConfig:
        raise
    except Exception as error:  # the factory is the user's code
        raise InvalidConfig(f"model.factory '{config.factory}' failed: {first_line(error)}") from error


def _torchvision(name: str) -> Callable[..., nn.Module]:
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        raise InvalidConfig(f"model.factory is 'torchvision:{name}', which torchvision does not have{hint}")
    return torchvision.models.get_model_builder(name)  # type: ignore[no-any-return]


def _pretrained(
    factory: Callable[..., nn.Module], classes: int, say: Callable[[str], None]
) -> Callable[..., nn.Module]:
    said: set[str] = set()

    def build_and_fit(**options: Any) -> nn.Module:
        module = factory(**options)
        linear = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
        if not linear:
            raise InvalidConfig(f"pretrained weights of a network without nn.Linear cannot be given {classes} classes")
        name, last = linear[-1]
        if last.out_features != classes:
            module.set_submodule(name, nn.Linear(last.in_features, classes, bias=last.bias is not None))
            line = (
                f"pretrained layer '{name}' had {last.out_features} outputs and is replaced by a fresh one of {classes}"
            )
            if line not in said:  # one line, though every initialisation makes a module
                said.add(line)
                say(line)
        return module

    return build_and_fit
