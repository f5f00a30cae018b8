"""What a request went through, for traces, logs and statistics: filled in by whoever does it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    name: str  # input, queue, execute, combine
    start: float  # monotonic seconds
    end: float
    rows: int  # of the whole batch; of `queue` the request's own
