"""Ensembles replaced under load, good and corrupt ones mixed, writers killed: no request fails, no answer is mixed.

Version k of `tiny` has as many members as its number says, so an answer that names its version says what it must be.
"""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from tests import tiny_ensemble
from tests.load import Load
from tests.server_process import ROOT, ServerProcess

ROWS = np.random.default_rng(0).normal(size=(16, 4)).astype("<f4")
PROBS = {members: tiny_ensemble.pooled_probs(ROWS, members=members) for members in range(1, 5)}
WATCHING = ("--watch", "--watch-seconds", "0.02")

# Writes over the served directory file by file, as a careless copy would, and never comes to its end.
CARELESS = """
import sys, threading
from pathlib import Path

source, target = map(Path, sys.argv[1:])
for name in ("manifest.json", "graph.onnx"):
    (target / name).write_bytes((source / name).read_bytes())
data = (source / "weights/w0.safetensors").read_bytes()
with (target / "weights/w0.safetensors").open("wb") as file:
    file.write(data[: len(data) // 2])
    file.flush()
    print("half", flush=True)
    threading.Event().wait()
"""

# Makes a new directory beside its place, as our writer does, and never comes to its end.
CAREFUL = """
import sys, threading
from pathlib import Path
from protos import manifest_file
from tests import tiny_ensemble

def stop(*arguments):
    print("half", flush=True)
    threading.Event().wait()

manifest_file._move = stop
tiny_ensemble.write(Path(sys.argv[2]), version="never")
"""


def members_of(version: str) -> int:
    return 1 + int(version) % 4


def asking(channel: grpc.Channel, seen: set[str]) -> Callable[[], None]:
    rows, stub = itertools.cycle(range(len(ROWS))), GRPCInferenceServiceStub(channel)

    def ask() -> None:
        row = next(rows)
        request = oip.ModelInferRequest(model_name="tiny", raw_input_contents=[ROWS[row].tobytes()])
        request.inputs.add(name="input", datatype="FP32", shape=[1, 4])
        response = stub.ModelInfer(request, timeout=60)
        probs = np.frombuffer(response.raw_output_contents[0], "<f4")
        np.testing.assert_allclose(probs, PROBS[members_of(response.model_version)][row], atol=1e-6)
        seen.add(response.model_version)

    return ask


class Publisher:
    """Replaces what the server watches, and waits until the server has seen it."""

    def __init__(self, served: Path, server: ServerProcess) -> None:
        self.served, self.server = served, server
        self.published = {"ok": 1, "refused": 0}  # what the server has loaded at start

    def good(self, version: int) -> None:
        tiny_ensemble.write(self.served, members_of(str(version)), version=str(version))
        self._wait("ok")

    def corrupt(self, version: int) -> None:
        """Whole, but for one bit of a weight."""
        made = self.served.with_name("made")
        tiny_ensemble.write(made, members_of(str(version)), version=str(version))
        path = made / "weights/w0.safetensors"
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        self.served.rename(self.served.with_name("before"))
        made.rename(self.served)
        shutil.rmtree(self.served.with_name("before"))
        self._wait("refused")

    def careless_writer_killed(self, version: int) -> None:
        made = self.served.with_name("made")
        tiny_ensemble.write(made, members_of(str(version)), version=str(version))
        self._killed(CARELESS, made)
        shutil.rmtree(made)
        self._wait("refused")

    def careful_writer_killed(self, version: int) -> None:
        self._killed(CAREFUL, self.served)

    def _killed(self, code: str, source: Path) -> None:
        command = [sys.executable, "-c", code, str(source), str(self.served)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            process.send_signal(signal.SIGKILL)

    def _wait(self, result: str) -> None:
        """A folder that is left half done is refused once at least: two looks may also have agreed before its end."""
        self.published[result] += 1
        deadline = time.monotonic() + 60
        while (counted := self.counted())["ok"] != self.published["ok"] or counted["refused"] < self.published[
            "refused"
        ]:
            assert time.monotonic() < deadline, (counted, self.published)
        self.published = counted

    def counted(self) -> dict[str, int]:
        with urllib.request.urlopen(f"http://{self.server.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        values = {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith("ensemble_loads_total")}
        return {result: int(values[f'ensemble_loads_total{{result="{result}"}}']) for result in ("ok", "refused")}


def threads_of(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("Threads:")[1].split()[0])


def reload_under_load(folder: Path, reloads: int, requests: int) -> None:
    """Of eight, five are good, one is corrupt, and two are left half done by a writer that was killed."""
    served, seen = folder / "tiny", set[str]()
    tiny_ensemble.write(served, members_of("0"), version="0")
    with ServerProcess(served, *WATCHING) as server, grpc.insecure_channel(server.grpc) as channel:
        publisher = Publisher(served, server)
        kinds = [publisher.good, publisher.corrupt, publisher.good, publisher.careless_writer_killed,
                 publisher.good, publisher.good, publisher.careful_writer_killed, publisher.good]  # fmt: skip
        with Load(asking(channel, seen)) as load:
            load.wait_for(20)
            threads = threads_of(server)
            good = ["0"]
            for version in range(1, reloads + 1):
                publish = kinds[(version - 1) % len(kinds)]
                publish(version)
                if publish == publisher.good:
                    good.append(str(version))
                load.wait_for(max(20, (requests - load.answers) // (reloads - version + 1)))
        assert load.failures == []
        assert load.answers >= requests
        assert seen == set(good)
        assert publisher.counted()["ok"] == len(good)
        deadline = time.monotonic() + 60
        while threads_of(server) > threads + 2:  # what was replaced has ended its threads
            assert time.monotonic() < deadline, (threads_of(server), threads)
        code, errors = server.stop()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert errors.count("refused path=") >= publisher.published["refused"]
    print(json.dumps({"reloads": reloads, "requests": load.answers, "loads": publisher.published}))


def test_eight_reloads_under_load_lose_and_mix_nothing(tmp_path: Path) -> None:
    reload_under_load(tmp_path, reloads=8, requests=400)


@pytest.mark.slow
def test_two_hundred_reloads_under_load_lose_and_mix_nothing(tmp_path: Path) -> None:
    reload_under_load(tmp_path, reloads=200, requests=20_000)
