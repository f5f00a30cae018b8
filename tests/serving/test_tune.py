"""The settings for a machine: the choice as a function of times, the rounds by a clock of ours, and the real thing."""

from pathlib import Path

import numpy as np
import pytest

from serving.__main__ import main
from serving.client.clients import Client
from serving.errors import StartupError
from serving.settings import parse
from serving.tune import LEAST_ROUNDS, Candidate, candidates, choose, measure
from tests import tiny_ensemble
from tests.server_process import ServerProcess

QUICK_ROW = Candidate(threads=1)  # first with one row
QUICK_BATCH = Candidate(threads=2)  # first with many
FOUND = {QUICK_ROW: {1: 0.010, 8: 0.080, 64: 0.640}, QUICK_BATCH: {1: 0.020, 8: 0.041, 16: 0.081, 64: 0.320}}


def test_throughput_takes_the_highest_rate_and_the_fewest_rows_that_nearly_reach_it() -> None:
    choice = choose(FOUND, "throughput")
    assert (choice.candidate, choice.max_batch_rows) == (QUICK_BATCH, 8)  # 195 rows/s of 200
    assert "the highest rate, 200 rows/s" in choice.why


def test_latency_takes_the_shortest_time_of_one_row() -> None:
    choice = choose(FOUND, "latency")
    assert (choice.candidate, choice.max_batch_rows) == (QUICK_ROW, 1)
    assert "one row, 10.00 ms" in choice.why


def test_no_batch_takes_longer_than_allowed() -> None:
    choice = choose(FOUND, "throughput", latency_seconds=0.03)
    assert (choice.candidate, choice.max_batch_rows) == (QUICK_ROW, 1)
    with pytest.raises(StartupError, match=r"--latency-ms: the fastest batch takes 10\.00 ms; expected that or more"):
        choose(FOUND, "throughput", latency_seconds=0.005)


def test_candidates_take_turns_and_medians_ignore_a_slow_moment() -> None:
    now = 0.0
    order: list[tuple[str, int]] = []

    def work(name: str, seconds: float):  # type: ignore[no-untyped-def]
        def run(rows: int) -> None:
            nonlocal now
            order.append((name, rows))
            now += seconds * rows * (100 if len(order) == 9 else 1)

        return run

    works = {QUICK_ROW: work("a", 0.1), QUICK_BATCH: work("b", 0.2)}
    found = measure(works, max_rows=3, seconds=40.0, clock=lambda: now)
    for candidate, seconds in ((QUICK_ROW, 0.1), (QUICK_BATCH, 0.2)):
        assert found[candidate] == pytest.approx({rows: seconds * rows for rows in (1, 2, 3)})
    first = [name for name, rows in order[6:] if rows == 1]  # after the warm-up
    assert first[:4] == ["a", "b", "b", "a"]


def test_batches_that_would_take_all_the_time_are_left_out() -> None:
    now = 0.0
    ran: list[int] = []

    def work(rows: int) -> None:
        nonlocal now
        ran.append(rows)
        now += rows

    assert measure({QUICK_ROW: work}, 64, seconds=20.0, clock=lambda: now) == {QUICK_ROW: {1: 1.0, 2: 2.0}}
    assert ran.count(1) > LEAST_ROUNDS
    assert max(ran) == 4


def test_only_allowed_precisions_are_candidates() -> None:
    assert {candidate.precision for candidate in candidates("auto", ["fp32"], 8)} == {"fp32"}
    in_bf16 = [candidate for candidate in candidates("auto", ["fp32", "bf16"], 8) if candidate.precision == "bf16"]
    assert {(candidate.engine, candidate.threads) for candidate in in_bf16} == {("openvino", 8), ("openvino", 4)}
    assert {candidate.device for candidate in candidates("cpu", ["fp32"], 1)} == {"cpu"}


def test_a_server_starts_with_the_file_and_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, file = tmp_path / "tiny", tmp_path / "serve.toml"
    tiny_ensemble.write(directory)
    arguments = ["tune", str(directory), "--out", str(file), "--seconds", "0.2", "--device", "cpu", "--max-rows", "4"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| cpu, onnxruntime, fp32" in printed
    settings = parse([str(directory), "--config", str(file)], {})
    assert (settings.precision, settings.memory, settings.device) == ("fp32", "fast", "cpu")
    assert settings.max_batch_rows in (1, 2, 4)
    assert "# thalweg-serve tune, " in file.read_text()
    rows = np.ones((1, tiny_ensemble.FEATURES), np.float32)
    with ServerProcess(directory, "--config", str(file)) as server, Client(server.grpc, "tiny") as client:
        np.testing.assert_allclose(client.predict(rows).probs, tiny_ensemble.pooled_probs(rows), atol=1e-5)

    assert main(arguments) == 2
    assert "is there already; --force replaces it" in capsys.readouterr().err
    assert main([*arguments, "--force", "--memory-limit", "1"]) == 2
    assert "--memory-limit is 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["serve.toml"]
