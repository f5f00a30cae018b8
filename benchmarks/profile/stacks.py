"""Sampled stacks, as py-spy writes them with `--format raw --function`: frames from the root on, and how often."""

from collections import Counter
from collections.abc import Iterable

Stacks = Counter[tuple[str, ...]]

# A sample belongs to the innermost frame that one of these texts names; the first line that does.
STAGES = {
    "queue": ("serving/batcher.py", "serving/networks/engines/lanes.py", "concurrent/futures"),
    "networks": ("serving/networks/", "onnxruntime"),
    "combine": ("serving/combine.py",),
    "telemetry": ("serving/telemetry/", "prometheus_client"),
    "batch": ("serving/ensemble.py", "serving/policy.py"),
    "parse": ("serving/request.py", "serving/ports/handlers.py"),
    "respond": ("serving/response.py",),
    "servicer": ("serving/servicer.py", "serving/repository/"),
    # A thread that shows nothing but its start runs gRPC's poller, which is no Python.
    "gRPC and event loop": ("grpc", "asyncio", "selectors.py", "Thread.run (threading.py"),
}
OTHER = "other Python"

# Innermost frames of a thread that waits; in some virtual machines py-spy takes it for one that runs.
WAITING = (
    "_worker (concurrent/futures/thread.py",
    "select (selectors.py",
    "_poll_wrapper",
    "wait (threading.py",
    "result (concurrent/futures/_base.py",
    "serve_forever",
)


def parse(lines: Iterable[str]) -> Stacks:
    """Those of threads that run. Raises ValueError for a line that ends with no number."""
    stacks: Stacks = Counter()
    for line in filter(None, map(str.strip, lines)):
        frames, _, count = line.rpartition(" ")
        stack = tuple(frames.split(";"))
        if not any(text in stack[-1] for text in WAITING):
            stacks[stack] += int(count)
    return stacks


def stage(stack: tuple[str, ...]) -> str:
    for frame in reversed(stack):
        for name, texts in STAGES.items():
            if any(text in frame for text in texts):
                return name
    return OTHER


def by_stage(stacks: Stacks) -> dict[str, int]:
    """Samples of each stage, in the order of STAGES."""
    counts = dict.fromkeys([*STAGES, OTHER], 0)
    for stack, count in stacks.items():
        counts[stage(stack)] += count
    return counts
