"""Near duplicates as a server counts them: how often on rows that are asked about once, how often on those of attacks.

Attacks as sequences of queries, without a network: Square (L∞) with a model that likes every third query, and one
picture again and again with fresh Gaussian noise, as boundary attacks ask and as one who wants not to be found would.
The cost of a row comes last: a timing, of whatever machine this is.
"""

import argparse
import sys
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from benchmarks.record import spread, write_record
from serving.near_duplicates import NearDuplicates
from trainer import data
from trainer.config import DataConfig

DATA = {
    "digits": DataConfig(),
    "FashionMNIST": DataConfig(source="torchvision:FashionMNIST"),
    "CIFAR100": DataConfig(source="torchvision:CIFAR100"),
}
QUERIES = 200
EPSILONS = (8, 38)  # pixels: 0.03 and 0.15 of the range
NOISES = (1, 2, 4, 8, 16)  # standard deviation, pixels
Pictures = NDArray[np.uint8]
Attack = Callable[[Pictures, np.random.Generator], Iterator[Pictures]]


def square(
    image: Pictures, epsilon: float, queries: int, draw: np.random.Generator, of: int = 1000
) -> Iterator[Pictures]:
    """What Square (Andriushchenko et al. 2020) asks about, with the schedule of `of` queries in all.

    Vertical stripes first; then a square at a time, the smaller the later, is set to the image ± epsilon.
    """
    channels, height, width = image.shape

    def moved(signs: tuple[int, ...], part: Pictures) -> Pictures:
        return np.clip(part + epsilon * draw.choice([-1.0, 1.0], signs), 0, 255).round().astype(np.uint8)

    best = moved((channels, 1, width), image)
    yield best
    steps = [10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000]
    for query in range(1, queries):
        share = 0.8 / 2 ** sum(query * 10_000 / of > step for step in steps)
        side = min(max(round((share * height * width) ** 0.5), 1), height - 1)
        y, x = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
        window = np.s_[:, y : y + side, x : x + side]
        tried = best.copy()
        tried[window] = moved((channels, 1, 1), image[window])
        yield tried
        if draw.random() < 1 / 3:
            best = tried


def noisy(image: Pictures, deviation: float, queries: int, draw: np.random.Generator) -> Iterator[Pictures]:
    for _ in range(queries):
        yield np.clip(image + draw.normal(0, deviation, image.shape), 0, 255).round().astype(np.uint8)


def shifted(image: Pictures, queries: int, draw: np.random.Generator) -> Iterator[Pictures]:
    for query in square(image, EPSILONS[1], queries, draw):
        yield np.roll(query, draw.integers(-2, 3, 2), (1, 2))


ATTACKS: dict[str, Attack] = {
    **{f"Square, ε {e}": lambda image, draw, e=e: square(image, e, QUERIES, draw) for e in EPSILONS},  # type: ignore[misc]
    "Square, ε 38, of 5,000 queries": lambda image, draw: square(image, EPSILONS[1], QUERIES, draw, of=5000),
    **{f"noise {s}": lambda image, draw, s=s: noisy(image, s, QUERIES, draw) for s in NOISES},  # type: ignore[misc]
    "Square, ε 38, each query moved by up to 2 pixels": lambda image, draw: shifted(image, QUERIES, draw),
}


def watcher(rows: Pictures) -> NearDuplicates:
    return NearDuplicates(rows[0].size, Counter("rows", "Near", registry=None))


def found(attacked: Pictures, attack: Attack) -> tuple[list[float], list[float]]:
    """Of each picture's attack: the share of queries that count, and which query was the first; inf: none."""
    shares, firsts = [], []
    for i, image in enumerate(attacked):
        watching = watcher(attacked)
        near = np.concatenate([watching.near("one", row[None]) for row in attack(image, np.random.default_rng(i))])
        shares.append(float(near.mean()))
        firsts.append(float(near.argmax()) + 1 if near.any() else float("inf"))
    return shares, firsts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--pictures", type=int, default=100, help="that are attacked, of each data set")
    parser.add_argument("--record", type=Path, help="folder for the committed record, such as benchmarks/records/X")
    options = parser.parse_args()

    results: dict[str, Any] = {}
    lines = [f"| queries | {' | '.join(DATA)} |", f"|---|{'---|' * len(DATA)}"]
    titles = ("test rows once each: counted", *ATTACKS, "µs a row, one by one", "in 64s")
    cells: dict[str, list[str]] = {title: [] for title in titles}
    for name, config in DATA.items():
        config = DataConfig(**{**vars(config), "root": options.root})
        rows = data.load(config).by_name["test"].inputs.numpy()
        watching = watcher(rows)
        requests = (rows[start : start + 64] for start in range(0, len(rows), 64))
        alarms = sum(int(watching.near("one", request).sum()) for request in requests)
        results[name] = {"rows": len(rows), "alarms": alarms}
        cells["test rows once each: counted"].append(f"{alarms} of {len(rows):,}")
        for attack, queries in ATTACKS.items():
            shares, firsts = found(rows[: options.pictures], queries)
            results[name][attack] = {"shares": shares, "firsts": firsts}
            cells[attack].append(f"{spread([100 * share for share in shares], 0)} % ({max(firsts):g})")
        watching = watcher(rows)
        for column, batch, times in (("µs a row, one by one", 1, 2000), ("in 64s", 64, 100)):
            seconds = min(timeit.repeat(partial(watching.near, "one", rows[:batch]), number=times, repeat=5))
            results[name][column] = 1e6 * seconds / times / batch
            cells[column].append(f"{results[name][column]:.1f}")
        print(name, results[name]["alarms"], flush=True)
    lines += [f"| {row} | {' | '.join(values)} |" for row, values in cells.items()]
    table = "\n".join(lines)
    print(f"\n{table}")
    if options.record:
        write_record(options.record, "benchmarks.near_duplicates", table, pictures=options.pictures, results=results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
