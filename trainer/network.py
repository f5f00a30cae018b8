"""A network as a function of one flat weight vector: what every stage trains, moves, combines and evaluates.

The module itself is never modified or rewritten: its parameters are views into the vector, handed over by
`torch.func.functional_call`, so any nn.Module works and a curve costs one weighted sum a step.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.config import ModelConfig
from trainer.errors import InvalidConfig

Statistics = dict[str, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Network:
    """`factory` makes a freshly initialised module; `preprocess` turns raw inputs into what the module takes."""

    def __init__(self, factory: Callable[[], nn.Module], preprocess: nn.Module) -> None:
        self._factory = factory
        self.preprocess = preprocess
        self.module = factory()
        parameters = dict(self.module.named_parameters())
        if len({(parameter.dtype, parameter.device) for parameter in parameters.values()}) != 1:
            raise InvalidConfig("the network's parameters differ in type or device, or there are none; expected one")
        self._shapes = {name: parameter.shape for name, parameter in parameters.items()}
        self._sizes = [parameter.numel() for parameter in parameters.values()]

    @property
    def size(self) -> int:
        """P, the number of parameters; tied ones count once."""
        return sum(self._sizes)

    def initial_weights(self) -> Tensor:
        """A fresh initialisation [P], drawn from torch's global generator."""
        return self.flatten(dict(self._factory().named_parameters()))

    def initial_statistics(self) -> Statistics:
        """A copy of the module's floating-point buffers, by name: BatchNorm's running mean and variance."""
        return {
            name: buffer.detach().clone()
            for name, buffer in self.module.state_dict().items()
            if name not in self._shapes and buffer.is_floating_point()
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Parameters by name, as one vector [P]."""
        return torch.cat([tensors[name].detach().reshape(-1) for name in self._shapes])

    def unflatten(self, weights: Tensor) -> dict[str, Tensor]:
        """Views into the vector [P], by parameter name."""
        parts = weights.split(self._sizes)
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def logits(self, weights: Tensor, statistics: Statistics, inputs: Tensor) -> Tensor:
        """Raw inputs [B, ...] to logits [B, C], in the module's mode: training updates `statistics` in place."""
        return functional_call(  # type: ignore[no-any-return]
            self.module, (self.unflatten(weights), statistics), (self.preprocess(inputs),)
        )

    def gradient(
        self, weights: Tensor, statistics: Statistics, inputs: Tensor, targets: Tensor, loss: Loss
    ) -> tuple[Tensor, Tensor]:
        """The batch's loss and its gradient [P] with respect to the weights, in training mode."""
        self.module.train()
        point = weights.detach().requires_grad_()
        value = loss(self.logits(point, statistics, inputs), targets)
        (gradient,) = torch.autograd.grad(value, point)
        return value.detach(), gradient


class Normalise(nn.Module):
    """(x − mean) / std by channel, from raw inputs of any type. In the exported graph, so clients send raw pixels."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: list[float], std: list[float], input_axes: int) -> None:
        super().__init__()
        shape = (1, -1, *(1,) * (input_axes - 2))
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(shape))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(shape))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(torch.float32) - self.mean) / self.std


def build(config: ModelConfig, preprocess: nn.Module, **arguments: Any) -> Network:
    """The network that a config names. Raises InvalidConfig if its factory cannot be found or called so."""
    module_name, _, function = config.factory.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError) as error:
        raise InvalidConfig(f"model.factory is '{config.factory}': {error}") from None
    try:
        return Network(lambda: factory(**arguments, **config.options), preprocess)
    except TypeError as error:
        raise InvalidConfig(f"model.factory '{config.factory}' refused its arguments: {error}") from None
