"""Asks a server for health and a prediction every 50 ms, from a process of its own, while something attacks it."""

import json
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests import tiny_ensemble
from tests.server_process import ROOT

EVERY_S = 0.05
TIMEOUT_S = 5.0  # of one call; generous, since tests share their machine with others
LEAST_ROUNDS = 20  # a short attack may show its effect after its end


@dataclass
class Report:
    failures: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each round: health and prediction


def ask(address: str, stop: threading.Event) -> Report:
    report = Report()
    rows = np.random.default_rng(0).normal(size=(2, 4)).astype("<f4")
    expected = tiny_ensemble.pooled_probs(rows)
    request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[rows.tobytes()])
    request.inputs.add(name="input", datatype="FP32", shape=rows.shape)
    with grpc.insecure_channel(address) as channel:
        health, inference = health_pb2_grpc.HealthStub(channel), GRPCInferenceServiceStub(channel)
        while True:
            start = time.monotonic()
            try:
                for service in ("", "tiny"):
                    status = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S).status
                    if status != health_pb2.HealthCheckResponse.SERVING:
                        report.failures.append(f"health of '{service}': {status}")
                response = inference.ModelInfer(request, timeout=TIMEOUT_S)
                probs = np.frombuffer(response.raw_output_contents[0], "<f4").reshape(2, 3)
                if np.abs(probs - expected).max() > 1e-6:
                    report.failures.append(f"wrong answer: {probs.tolist()}")
            except grpc.RpcError as error:
                report.failures.append(f"{error.code().name}: {error.details()}")
            report.seconds.append(time.monotonic() - start)
            time.sleep(max(EVERY_S - report.seconds[-1], 0.0))
            if stop.is_set() and len(report.seconds) >= LEAST_ROUNDS:
                return report


class Probe:
    """Runs while its body does; then `report` holds what it found."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-m", "tests.hostile.probe", address]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.report = Report()

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "asking\n"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        output, _ = self._process.communicate("stop\n", timeout=60)
        self.report = Report(**json.loads(output))


def main() -> None:
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stop.set()), daemon=True).start()
    print("asking", flush=True)
    print(json.dumps(vars(ask(sys.argv[1], stop))))


if __name__ == "__main__":
    main()
