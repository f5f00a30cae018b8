"""The comparison itself, on a real server: tiny runs, resuming, and that a wrong answer ends them."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serve import contenders, ensemble, generator, loads, ours
from benchmarks.serve.loads import CLOSED
from benchmarks.serve.peers import oip
from benchmarks.serve.server import Server, WrongAnswer

ROOT = Path(__file__).resolve().parent.parent.parent.parent


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serve") / "ensemble"
    ensemble.write(folder)
    return folder


def thalweg(folder: Path) -> contenders.Contender:
    return next(each for each in contenders.find(folder) if each.name == "thalweg")


@pytest.fixture(scope="module")
def server(models: Path) -> Iterator[Server]:
    with Server(thalweg(models), models, models.parent / "log") as server:
        yield server


def test_the_fused_graph_answers_as_the_reference_and_a_missing_member_would_be_noticed(models: Path) -> None:
    import onnxruntime

    rows = ensemble.rows(8)
    session = onnxruntime.InferenceSession(models / "fused.onnx", providers=["CPUExecutionProvider"])
    expected = ensemble.reference(models, rows)
    np.testing.assert_allclose(session.run(["probs"], {"input": rows})[0], expected, atol=1e-6)
    logits_MBC = ensemble.logits(models, rows)
    probs_MBC = np.exp(logits_MBC) / np.exp(logits_MBC).sum(-1, keepdims=True)
    without = [np.abs(np.delete(probs_MBC, m, 0).mean(0) - expected).max(-1) for m in range(ensemble.MEMBERS)]
    assert np.min(without) > 10 * ours.FP32_TOLERANCE


def test_calls_that_fail_are_counted_as_failed(server: Server) -> None:
    """h2load takes a gRPC answer with a status that is not OK for a success."""
    good = server.body(1)
    answer = server.verify(1, 1)
    wrong = oip.request(ensemble.rows(1)[:, :, :16])
    for body, expected in ((good, (12, 0)), (wrong, (0, 12))):
        result = generator.closed_loop(server.address, "oip-grpc", body, answer, parallel=4, count=12)
        assert (result.answered, result.failed, len(result.latencies)) == (*expected, 12)


def test_a_closed_loop_is_counted_in_images_and_its_cpu_time_in_all_of_the_server(server: Server) -> None:
    found = loads.closed(server, CLOSED["4 × 8"], loads.QUICK)
    assert found["images"] == 8 * found["requests"] > 0
    assert found["failed"] == 0
    assert found["images"] * found["cpu_s_per_image"] == pytest.approx(found["cpu_s"])
    assert found["cpu_s_per_image"] > 0.0005  # eight networks of 41 million multiplications
    assert found["resident_bytes"] > 2**25


@pytest.mark.parametrize("change", [lambda probs: np.roll(probs, 1, axis=-1), lambda probs: probs * np.nan])
def test_a_wrong_answer_is_told_with_the_difference(server: Server, change, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = replace(server.contender, probabilities=lambda answer: change(oip.probabilities(answer)))
    monkeypatch.setattr(server, "contender", wrong)
    with pytest.raises(WrongAnswer, match=r"thalweg gave row \d+ the probabilities .*; expected .* within 0.0001"):
        server.verify(4, 8)


def test_a_server_that_mixes_up_the_rows_of_a_batch_is_noticed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = replace(server.contender, request=lambda rows: oip.request(rows[::-1]))
    monkeypatch.setattr(server, "contender", mixed)
    with pytest.raises(WrongAnswer, match="gave row"):
        server.verify(1, 8)


def test_a_server_that_ends_before_it_answers_is_told_with_its_last_words(models: Path) -> None:
    command = [sys.executable, "-c", "print('no such model'); raise SystemExit(3)"]
    ending = replace(thalweg(models), command=lambda models, port: command)
    with pytest.raises(RuntimeError, match="thalweg ended with 3: no such model"):
        Server(ending, models, models.parent / "ending.log")


def test_what_becomes_of_calls_in_flight_and_of_the_process_at_sigterm(models: Path) -> None:
    with Server(thalweg(models), models, models.parent / "sigterm.log") as server:
        found = loads.sigterm(server, after_s=0.2, patience_s=30.0)
    assert (found["codes"], found["exit_code"], found["left_behind"]) == ({"OK": loads.IN_FLIGHT}, 0, 0)


@pytest.mark.slow
def test_a_quick_run_ends_with_tables_a_picture_and_a_record_and_measures_each_step(models: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.serve", "--quick", "--only", "thalweg"]
    out = models.parent
    record = out / "record"
    done = subprocess.run(
        [*command, "--out", str(out), "--record", str(record)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| thalweg |")]
    assert len(rows) == 4
    assert re.fullmatch(r"\| thalweg \|( \d+ \|){4}", rows[0])
    behind = json.loads((record / "record.json").read_text())
    assert set(behind["rounds"][0]["thalweg"]) >= {*CLOSED, loads.OPEN, loads.AT_ONCE, loads.SIGTERM}
    assert behind["versions"]["thalweg"]["thalweg"]
    assert (record / "serve.png").exists()


@pytest.mark.slow
def test_a_run_that_is_interrupted_leaves_no_server_behind_and_goes_on(models: Path) -> None:
    out = models.parent / "interrupted"
    (out / "ensemble").parent.mkdir()
    (out / "ensemble").symlink_to(models)
    (out / "open_loop.json").write_text(json.dumps({"rate": 20.0}))
    command = [sys.executable, "-m", "benchmarks.serve", "--only", "thalweg", "--rounds", "1", "--seconds", "0.5"]
    kept = out / "rounds" / "1" / "thalweg.json"
    run = subprocess.Popen([*command, "--out", str(out)], cwd=ROOT)
    while not kept.exists():  # the first load is measured
        assert run.poll() is None
        time.sleep(0.02)
    run.terminate()
    assert run.wait(60) == 128 + 15
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(out) not in listed
    first = json.loads(kept.read_text())
    subprocess.run([*command, "--out", str(out)], cwd=ROOT, check=True, capture_output=True)
    whole = json.loads(kept.read_text())
    assert first["1"] == whole["1"]
    assert {*loads.steps(thalweg(out))} <= whole.keys()


def test_what_is_measured_already_is_not_measured_again(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.serve.rounds import Bench

    out = models.parent / "resumed"
    contender = thalweg(models)
    (out / "rounds" / "1").mkdir(parents=True)
    found: dict[str, dict] = {step: {} for step in ["in process", *loads.steps(contender)]}
    (out / "rounds" / "1" / "thalweg.json").write_text(json.dumps(found))
    bench = Bench(models, out, loads.QUICK)
    bench.run([contender], 1)  # would start a server and write its commit
    assert bench.found([contender], 1) == [{"thalweg": found}]
    del found["8"], found[loads.SIGTERM]
    (out / "rounds" / "1" / "thalweg.json").write_text(json.dumps(found | {"error": "interrupted"}))
    asked = []
    monkeypatch.setattr(loads, "measure", lambda server, step, *_args, **_kwargs: asked.append(step) or {})
    bench.run([contender], 1)
    assert asked == ["8", loads.SIGTERM]
    assert "error" not in bench.found([contender], 1)[0]["thalweg"]
