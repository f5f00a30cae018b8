"""Alternating rounds: every contender once in each, one server up at a time, another one first each time.

Everything that is measured is kept under --out at once, and what is there is not measured again.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.serve import loads
from benchmarks.serve.contenders import ROOT, Contender, Kind
from benchmarks.serve.loads import Durations
from benchmarks.serve.server import Server
from trainer.atomic_file import write_bytes
from trainer.manifest import git_commit

IN_PROCESS = "in process"  # just before the server, since the machine may change its pace within a round
Round = dict[str, dict[str, Any]]  # by contender


@dataclass(frozen=True)
class Bench:
    models: Path  # what `ensemble.py` wrote
    out: Path
    durations: Durations

    def run(self, contenders: Sequence[Contender], count: int) -> None:
        """Raises WrongAnswer. What goes wrong otherwise is written beside what went well, and tried again next time."""
        rate = self.durations.rate or self.open_loop_rate(contenders)
        for i in range(count):
            first = i * len(contenders) // count
            for contender in [*contenders[first:], *contenders[:first]]:
                self._measure(i, contender, rate)

    def open_loop_rate(self, contenders: Sequence[Contender]) -> float:
        """Half of the peak of the best tuned peer, the same for all; of ours, where there is no peer. Measured once."""
        path = self.out / "open_loop.json"
        if not path.exists():
            tuned = [each for each in contenders if each.kind is Kind.TUNED] or contenders
            peaks = {}
            for contender in tuned:
                try:
                    with Server(contender, self.models, self._log(contender, "peak")) as server:
                        peak = loads.closed(server, loads.CLOSED[loads.PEAK], self.durations)
                except RuntimeError as error:
                    print(f"{contender.name}: {error}", flush=True)
                    continue
                peaks[contender.name] = peak["images_per_s"]
                print(f"peak of {contender.name}: {peak['images_per_s']:.0f} images/s", flush=True)
            if not peaks:
                raise RuntimeError("no contender's peak could be measured")
            _write(path, {"peaks": peaks, "rate": max(peaks.values()) / 2})
        return float(json.loads(path.read_text())["rate"])

    def found(self, contenders: Sequence[Contender], count: int) -> list[Round]:
        """What there is of each round."""
        rounds = []
        for i in range(count):
            paths = {each.name: self._path(i, each) for each in contenders}
            rounds.append({name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()})
        return rounds

    def _measure(self, i: int, contender: Contender, rate: float) -> None:
        path = self._path(i, contender)
        found = json.loads(path.read_text()) if path.exists() else {}
        found.pop("error", None)
        missing = [step for step in loads.steps(contender) if step not in found]
        if not missing:
            return
        print(f"round {i + 1}, {contender.name}", flush=True)
        try:
            if IN_PROCESS not in found:
                found[IN_PROCESS] = self._in_process()
            with Server(contender, self.models, self._log(contender, str(i + 1))) as server:
                found |= {"commit": git_commit(), "ready_s": server.ready_s}
                for step in missing:
                    found[step] = loads.measure(server, step, self.durations, rate, seed=i)
                    _write(path, found)
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:
            print(f"{contender.name}: {error}", flush=True)
            _write(path, found | {"error": str(error)})

    def _in_process(self) -> Any:
        command = [sys.executable, "-m", "benchmarks.serve.in_process", "--models", str(self.models.absolute())]
        command += ["--seconds", str(self.durations.in_process_s)]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)

    def _path(self, i: int, contender: Contender) -> Path:
        return self.out / "rounds" / str(i + 1) / f"{contender.file_name}.json"

    def _log(self, contender: Contender, when: str) -> Path:
        return self.out / "logs" / f"{contender.file_name}-{when}.log"


def _write(path: Path, value: Any) -> None:
    write_bytes(path, f"{json.dumps(value)}\n".encode())
