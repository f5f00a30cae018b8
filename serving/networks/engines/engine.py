"""The interface of all engines: `load` makes a network of a graph and its tensors, and `lanes` answer calls to it.

How a network is loaded is what differs between devices.
"""

from abc import ABC, abstractmethod
from typing import TypeVar

from protos.stored_ensemble import Tensors
from serving.networks.engines.call import Network
from serving.networks.engines.lanes import Job, Lanes, Steps
from serving.networks.skeleton import Skeleton

T = TypeVar("T")

PRECISIONS = ("fp32", "fp16", "bf16")


class Engine(ABC):
    """name: for logs and metrics. threads: that answer calls. precision: of arithmetic."""

    # So many members at most, of so many parameters each, are fused as well: a group for each thread.
    fused_members = 0
    fused_parameters = 0

    def __init__(self, name: str, threads: int, precision: str = "fp32") -> None:
        self.name = name
        self.threads = threads
        self.precision = precision
        self.lanes = Lanes(threads)

    @abstractmethod
    def load(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        """The graph with these tensors, ready to run. Raises StartupError. Called from several threads at once."""

    def load_fused(self, skeleton: Skeleton, tensors: Tensors) -> Network:
        """As `load`, of a fused graph."""
        return self.load(skeleton, tensors)

    def batch_sizes(self, max_rows: int) -> list[int]:
        """Numbers of rows that must have run once before the first client pays for them."""
        return sorted({1, max_rows})

    def most_rows(self, rows: int) -> int:
        """Of so many rows, how many a network takes at once."""
        return rows

    def memory(self) -> tuple[int, int] | None:
        """Used and free bytes of the device, by everybody; None where it has no memory of its own."""
        return None

    def run(self, steps: Steps[T]) -> T:
        """Waits for what they return or raise, in their turn. Not to be called on a lane."""
        job = Job(steps)
        self.lanes.offer(lambda: job)
        return job.future.result()

    def close(self) -> None:
        self.lanes.close()
