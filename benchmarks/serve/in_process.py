"""The limit that servers are compared with: the fused graph in a bare ONNX Runtime loop, no server around it.

One thread in the session and two callers, so that both cores compute and nobody waits for anybody. Run as a process of
its own; prints images a second and the CPU time of one, for each batch size, as JSON.
"""

import argparse
import json
import threading
import time
from pathlib import Path

import onnxruntime

from benchmarks.serve import ensemble

BATCHES = (1, 8)
CALLERS = 2
WARM_UP_SECONDS = 0.5


def measure(session: onnxruntime.InferenceSession, batch: int, seconds: float) -> dict[str, float]:
    inputs = ensemble.rows(batch)
    counts = [0] * CALLERS

    def caller(i: int, end: float) -> None:
        while time.perf_counter() < end:
            session.run(["probs"], {"input": inputs})
            counts[i] += batch

    def all_callers(duration: float) -> None:
        end = time.perf_counter() + duration
        threads = [threading.Thread(target=caller, args=(i, end)) for i in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    all_callers(min(WARM_UP_SECONDS, seconds))
    counts[:] = [0] * CALLERS
    start, cpu_start = time.perf_counter(), time.process_time()
    all_callers(seconds)
    elapsed, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    return {"images_per_s": sum(counts) / elapsed, "cpu_s_per_image": cpu_s / sum(counts), "images": sum(counts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="of each batch size")
    arguments = parser.parse_args()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(arguments.models / "fused.onnx", options, ["CPUExecutionProvider"])
    print(json.dumps({str(batch): measure(session, batch, arguments.seconds) for batch in BATCHES}))


if __name__ == "__main__":
    main()
