"""The tables of a comparison: medians over rounds with the least and the greatest; ratios within a round."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.serve.contenders import Contender, Kind
from benchmarks.serve.loads import AT_ONCE, CLOSED, OPEN, SIGTERM
from benchmarks.serve.rounds import IN_PROCESS, Round

LEAST_CALLS_FOR_P999 = 3000

# What one round has; None if it was not measured there.
Value = Callable[[Round], float | None]


def images_per_s(name: str, step: str) -> Value:
    def value(round_: Round) -> float | None:
        measured = round_.get(name, {}).get(step)
        return measured["images_per_s"] if measured else None

    return value


def efficiency(name: str, step: str) -> Value:
    """CPU time of an image in process, in batches as large as a request, over that in the server."""

    def value(round_: Round) -> float | None:
        if step not in (found := round_.get(name, {})):
            return None
        return found[IN_PROCESS][str(CLOSED[step].rows)]["cpu_s_per_image"] / found[step]["cpu_s_per_image"]  # type: ignore[no-any-return]

    return value


def p99_s(name: str) -> Value:
    """Of the open loop."""

    def value(round_: Round) -> float | None:
        measured = round_.get(name, {}).get(OPEN)
        return float(np.quantile(measured["answered"], 0.99)) if measured and measured["answered"] else None

    return value


def ratio(of: Value, over: Value) -> Value:
    def value(round_: Round) -> float | None:
        above, below = of(round_), over(round_)
        return None if above is None or below is None else above / below

    return value


def best(choose: Callable[[list[float]], float], candidates: Sequence[Value]) -> Value:
    """Of each round, its own."""

    def value(round_: Round) -> float | None:
        found = [measured for each in candidates if (measured := each(round_)) is not None]
        return choose(found) if found else None

    return value


def over(rounds: Sequence[Round], value: Value) -> list[float]:
    return [found for each in rounds if (found := value(each)) is not None]


def tables(contenders: Sequence[Contender], rounds: Sequence[Round]) -> str:
    measured = [each for each in contenders if any(each.name in round_ for round_ in rounds)]
    parts = [
        f"Medians of {len(rounds)} rounds (least – greatest). Closed loops are requests in parallel × rows of each.",
        *("", "Images a second:", "", *_rates(measured, rounds)),
        "",
        "CPU-efficiency in %: CPU time of an image in the bare ONNX Runtime loop (fp32), which ran just before, "
        "over the server's:",
        *("", *_efficiencies(measured, rounds)),
        *("", "Images a second over those of others in the same round:", "", *_ratios(measured, rounds)),
        *("", *_open_loops(measured, rounds)),
        *("", *_overloads(measured, rounds)),
        *("", f"The machine's time that went to neither server nor load: at most {100 * _elsewhere(rounds):.0f} %."),
    ]
    errors = {name: found["error"] for each in rounds for name, found in each.items() if "error" in found}
    parts += [f"\n{name}: not complete. {error.splitlines()[0]}" for name, error in errors.items()]
    return "\n".join(parts)


def _rates(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[str]:
    loops = [found[IN_PROCESS] for each in rounds for found in each.values() if IN_PROCESS in found]

    def bare_loop(step: str) -> str:
        return _median([each[str(CLOSED[step].rows)]["images_per_s"] for each in loops], "{:.0f}")

    rows = [["bare ONNX Runtime loop", *map(bare_loop, CLOSED)]]
    for each in contenders:
        rows.append([each.name, *(_median(over(rounds, images_per_s(each.name, step)), "{:.0f}") for step in CLOSED)])
    return _table(["server", *map(_title, CLOSED)], rows)


def _efficiencies(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[str]:
    rows = []
    for each in contenders:
        shares = ([100 * share for share in over(rounds, efficiency(each.name, step))] for step in CLOSED)
        rows.append([each.name, *(_median(percent, "{:.0f}") for percent in shares)])
    return _table(["server", *map(_title, CLOSED)], rows)


def _ratios(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[str]:
    """Each of ours over the best tuned peer, and the first of ours over every peer."""
    ours = [each.name for each in contenders if each.kind is Kind.OURS]
    tuned = [each.name for each in contenders if each.kind is Kind.TUNED]
    rows = []
    for name in ours:
        values = (
            ratio(images_per_s(name, step), best(max, [images_per_s(peer, step) for peer in tuned])) for step in CLOSED
        )
        rows.append([f"{name} / best tuned peer", *(_median(over(rounds, value), "{:.2f}") for value in values)])
    for peer in contenders:
        if ours and peer.kind is not Kind.OURS:
            values = (ratio(images_per_s(ours[0], step), images_per_s(peer.name, step)) for step in CLOSED)
            rows.append([f"{ours[0]} / {peer.name}", *(_median(over(rounds, value), "{:.2f}") for value in values)])
    return _table(["", *map(_title, CLOSED)], rows)


def _open_loops(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[str]:
    tuned = [each.name for each in contenders if each.kind is Kind.TUNED]
    rates = {found[OPEN]["rate"] for each in rounds for found in each.values() if OPEN in found}
    rows = []
    for each in contenders:
        found = [round_[each.name][OPEN] for round_ in rounds if OPEN in round_.get(each.name, {})]
        if not found:
            continue
        answered = [one["answered"] for one in found if one["answered"]]
        pooled = [seconds for one in answered for seconds in one]
        against = ratio(p99_s(each.name), best(min, [p99_s(peer) for peer in tuned]))
        rows.append([
            each.name,
            _median([1e3 * float(np.quantile(one, 0.5)) for one in answered], "{:.1f}"),
            _median([1e3 * float(np.quantile(one, 0.99)) for one in answered], "{:.1f}"),
            f"{1e3 * float(np.quantile(pooled, 0.999)):.1f}" if len(pooled) >= LEAST_CALLS_FOR_P999 else "–",
            _median(over(rounds, against), "{:.2f}"),
            str(sum(len(one["failed"]) for one in found)),
            _median([1e3 * one["late_p99_s"] for one in found], "{:.1f}"),
        ])  # fmt: skip
    return [
        f"Open loop of {', '.join(f'{rate:.0f}' for rate in sorted(rates))} one-row requests a second at random "
        f"moments, half of the best tuned peer's peak; milliseconds:",
        "",
        *_table(["server", "p50", "p99", "p99.9 of all rounds", "p99 over the best tuned peer's", "failed",
                 "client late by, p99"], rows),
    ]  # fmt: skip


def _overloads(contenders: Sequence[Contender], rounds: Sequence[Round]) -> list[str]:
    rows = []
    for each in contenders:
        found = [round_[each.name] for round_ in rounds if each.name in round_]
        at_once = [one[AT_ONCE] for one in found if AT_ONCE in one]
        ends = [one[SIGTERM] for one in found if SIGTERM in one]
        memory = [one[step]["resident_bytes"] / 2**20 for one in found for step in CLOSED if step in one]
        rows.append([
            each.name,
            _codes(at_once),
            _median([statistics.median(one["answered"]) for one in at_once if one["answered"]], "{:.2f}"),
            _median([statistics.median(one["failed"]) for one in at_once if one["failed"]], "{:.2f}"),
            _codes(ends),
            ", ".join(sorted({_exit(one["exit_code"]) for one in ends})) or "–",
            _median([one["exit_s"] for one in ends], "{:.1f}"),
            _median([one["left_behind"] for one in ends], "{:.0f}"),
            _median([one["ready_s"] for one in found if "ready_s" in one], "{:.1f}"),
            f"{max(memory):.0f}" if memory else "–",
        ])  # fmt: skip
    return [
        "Many one-row requests at once; SIGTERM with calls in flight; processes that are left when the main one has "
        "ended. Codes are those of all rounds. Memory: PSS of all processes, the largest after any load.",
        "",
        *_table(["server", "at once", "answered in, s", "not answered in, s", "at SIGTERM", "exit code", "ends after s",
                 "left behind", "ready after s", "MiB"], rows),
    ]  # fmt: skip


def _codes(outcomes: Iterable[dict[str, Any]]) -> str:
    total: Counter[str] = Counter()
    for outcome in outcomes:
        total.update(outcome["codes"])
    return ", ".join(f"{code} {count}" for code, count in total.most_common()) or "–"


def _exit(code: int | None) -> str:
    return "does not end" if code is None else str(code)


def _elsewhere(rounds: Sequence[Round]) -> float:
    steps = [step for each in rounds for found in each.values() for step in found.values() if isinstance(step, dict)]
    return max((step["elsewhere"] for step in steps if "elsewhere" in step), default=0.0)


def _median(found: Sequence[float], form: str) -> str:
    if not found:
        return "–"
    middle, low, high = (form.format(value) for value in (statistics.median(found), min(found), max(found)))
    return middle if low == high else f"{middle} ({low} – {high})"


def _title(step: str) -> str:
    return f"{CLOSED[step].parallel} × {CLOSED[step].rows}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
