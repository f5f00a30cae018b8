"""Triton's statistics of a model, which its tools read: counts and times since it was loaded."""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from protos import open_inference_grpc_pb2 as oip
from serving.telemetry.stage import Stage

# Stages as Triton calls them.
_PARTS = {"queue": "queue", "input": "compute_input", "execute": "compute_infer", "combine": "compute_output"}


@dataclass
class _Duration:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def message(self) -> oip.StatisticDuration:
        return oip.StatisticDuration(count=self.count, ns=round(self.seconds * 1e9))


class Statistics:
    """Written by the event loop and by the thread that runs batches."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last_ms = self._rows = 0
        self._requests: defaultdict[str, _Duration] = defaultdict(_Duration)
        self._batches: defaultdict[int, tuple[_Duration, _Duration]] = defaultdict(lambda: (_Duration(), _Duration()))

    def ran(self, rows: int, execute_s: float, combine_s: float) -> None:
        """A batch."""
        with self._lock:
            execute, combine = self._batches[rows]
            execute.add(execute_s)
            combine.add(combine_s)

    def ended(self, answered: bool, rows: int, seconds: float, stages: Sequence[Stage]) -> None:
        """A request, however it ended."""
        with self._lock:
            self._requests["success" if answered else "fail"].add(seconds)
            if not answered:
                return
            self._last_ms = time.time_ns() // 1_000_000
            self._rows += rows
            for stage in stages:
                if stage.name in _PARTS:
                    self._requests[_PARTS[stage.name]].add(stage.end - stage.start)

    def message(self, name: str, version: str) -> oip.ModelStatistics:
        with self._lock:
            return oip.ModelStatistics(
                name=name,
                version=version,
                last_inference=self._last_ms,
                inference_count=self._rows,
                execution_count=sum(execute.count for execute, _ in self._batches.values()),
                inference_stats=oip.InferStatistics(
                    **{part: self._requests[part].message() for part in ("success", "fail", *_PARTS.values())}
                ),
                batch_stats=[
                    oip.InferBatchStatistics(
                        batch_size=rows, compute_infer=execute.message(), compute_output=combine.message()
                    )
                    for rows, (execute, combine) in sorted(self._batches.items())
                ],
            )
