"""Small networks for tests: with BatchNorm and dropout, and with tied weights."""

import torch
from torch import Tensor, nn

from trainer.data import Split
from trainer.network import Network


def batchnorm_network(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Network:
    def factory() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Conv2d(4, 5, 3, bias=False),
            nn.BatchNorm2d(5),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * 4 * 4, 3),
        ).to(dtype)

    return Network(factory, nn.Identity())


class Tied(nn.Module):
    """The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.output(self.embedding(tokens).mean(1))  # type: ignore[no-any-return]


class Silent:
    """A stage that tells nobody."""

    def epoch(self, done: int, loss: float) -> None:
        pass


def random_split(rows: int, dtype: torch.dtype = torch.float32) -> Split:
    generator = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, 1, 6, 6, generator=generator, dtype=torch.float64).to(dtype)
    return Split(inputs * 2 + 1, torch.randint(0, 3, (rows,), generator=generator))
