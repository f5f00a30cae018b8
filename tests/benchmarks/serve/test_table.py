"""Ratios of a comparison: within a round, of batches as large as the requests."""

from pathlib import Path
from typing import Any

from benchmarks.serve import table
from benchmarks.serve.contenders import Contender, Kind
from benchmarks.serve.loads import AT_ONCE, CLOSED, OPEN, SIGTERM
from benchmarks.serve.peers import oip


def contender(name: str, kind: Kind) -> Contender:
    return Contender(name, kind, lambda models, port: [], "oip-grpc", oip.request, oip.probabilities, 1e-4)


LOOP = {"1": {"images_per_s": 400.0, "cpu_s_per_image": 0.005}, "8": {"images_per_s": 440.0, "cpu_s_per_image": 0.004}}


def measured(rate: float, cpu_s: float, latency_s: float = 0.01) -> dict[str, Any]:
    closed = {"images_per_s": rate, "cpu_s_per_image": cpu_s, "resident_bytes": 2**20, "elsewhere": 0.01}
    calls = {"answered": [latency_s] * 2000, "failed": [], "codes": {"OK": 2000}}
    return {
        "in process": LOOP,
        **dict.fromkeys(CLOSED, closed),
        OPEN: calls | {"rate": 50.0, "late_p99_s": 0.0},
        AT_ONCE: {"answered": [1.0, 3.0], "failed": [0.5], "codes": {"OK": 2, "RESOURCE_EXHAUSTED": 1}},
        SIGTERM: calls | {"exit_code": -15, "exit_s": 0.5, "left_behind": 2},
        "ready_s": 1.5,
    }


CONTENDERS = [contender("ours", Kind.OURS), contender("a, tuned", Kind.TUNED), contender("b, tuned", Kind.TUNED),
              contender("a, natural", Kind.NATURAL)]  # fmt: skip
# The machine was half as fast in the second round, and another peer was the best.
ROUNDS = [
    {"ours": measured(300, 0.00625, 0.01), "a, tuned": measured(200, 0.01, 0.02),
     "b, tuned": measured(100, 0.02, 0.08), "a, natural": measured(30, 0.05)},
    {"ours": measured(150, 0.00625, 0.01), "a, tuned": measured(50, 0.01, 0.08),
     "b, tuned": measured(75, 0.02, 0.04), "a, natural": measured(15, 0.05)},
]  # fmt: skip


def rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def test_rates_efficiencies_and_ratios_of_the_same_round() -> None:
    lines = rows(table.tables(CONTENDERS, ROUNDS))
    assert "| bare ONNX Runtime loop | 400 | 400 | 400 | 440 |" in lines
    assert "| ours | " + " | ".join(["225 (150 – 300)"] * 4) + " |" in lines
    assert "| ours | 80 | 80 | 80 | 64 |" in lines  # efficiency; the last is of batches of eight
    assert "| ours / best tuned peer | " + " | ".join(["1.75 (1.50 – 2.00)"] * 4) + " |" in lines
    assert "| ours / a, natural | 10.00 | 10.00 | 10.00 | 10.00 |" in lines


def test_latency_is_against_the_best_tuned_peer_of_the_round_and_rare_calls_need_many() -> None:
    lines = rows(table.tables(CONTENDERS, ROUNDS))
    assert "| ours | 10.0 | 10.0 | 10.0 | 0.38 (0.25 – 0.50) | 0 | 0.0 |" in lines
    alone = rows(table.tables(CONTENDERS, ROUNDS[:1]))
    assert "| ours | 10.0 | 10.0 | – | 0.50 | 0 | 0.0 |" in alone


def test_overload_and_the_end_are_told_as_they_were() -> None:
    end = "OK 4000 | -15 | 0.5 | 2 | 1.5 | 1 |"
    assert f"| ours | OK 4, RESOURCE_EXHAUSTED 2 | 2.00 | 0.50 | {end}" in rows(table.tables(CONTENDERS, ROUNDS))


def test_what_was_not_measured_is_a_dash_and_what_went_wrong_is_told() -> None:
    rounds = [{"ours": {"ready_s": 1.0, "error": "gone\nlog"}, "a, tuned": measured(200, 0.01)}]
    text = table.tables(CONTENDERS, rounds)
    assert "| ours | – | – | – | – |" in rows(text)
    assert "| ours / best tuned peer | – | – | – | – |" in rows(text)
    assert "ours: not complete. gone" in text.splitlines()
    assert not any("b, tuned" in line for line in rows(text))


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    from benchmarks.serve import plot

    plot.draw(tmp_path / "serve.png", CONTENDERS, ROUNDS)
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")
