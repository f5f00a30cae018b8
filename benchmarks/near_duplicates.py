"""Near duplicates as a server counts them: how often on rows that are asked about once, how often on those of attacks.

Attacks as sequences of queries, without a network: Square against answers that fall with every third query, and one
picture again and again with fresh Gaussian noise, as boundary attacks ask and as one who wants not to be found would.
The cost of a row comes last: a timing, of whatever machine this is.
"""

import argparse
import random
import sys
import timeit
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from prometheus_client import Counter
from torch import Tensor

from benchmarks.record import spread, write_record
from serving.near_duplicates import NearDuplicates
from trainer import data
from trainer.attack.ball import around, floats
from trainer.attack.oracle import OutOfQueries
from trainer.attack.square import attack
from trainer.config import DataConfig

DATA = {
    "digits": DataConfig(),
    "FashionMNIST": DataConfig(source="torchvision:FashionMNIST"),
    "CIFAR100": DataConfig(source="torchvision:CIFAR100"),
}
QUERIES = 200
Pictures = NDArray[np.uint8]


def square(image: Pictures, norm: str, epsilon: float, budget: int, seed: int) -> Pictures:
    """The first queries of Square, of a budget, to a model whose margin falls with every third."""
    asked: list[Tensor] = []
    draw, falls = random.Random(seed), 0

    def oracle(rows: Tensor) -> Tensor:
        nonlocal falls
        if len(asked) == QUERIES:
            raise OutOfQueries(f"{QUERIES} queries are asked")
        asked.append(rows)
        better = draw.random() < 1 / 3
        falls += better
        own = 0.9 * 0.99**falls if better else 0.95
        return torch.tensor([[own, 1 - own]])

    torch.manual_seed(seed)
    rows = torch.from_numpy(image[None])
    attack(oracle, floats(rows), torch.zeros(1, dtype=torch.int64), around(rows, norm, epsilon), [budget])
    return torch.cat(asked).to(torch.uint8).numpy()


def noisy(image: Pictures, deviation: float, seed: int) -> Pictures:
    noise = np.random.default_rng(seed).normal(0, deviation, (QUERIES, *image.shape))
    return np.clip(image + noise, 0, 255).round().astype(np.uint8)


def moved(queries: Pictures, seed: int) -> Pictures:
    places = np.random.default_rng(seed).integers(-2, 3, (len(queries), 2))
    return np.stack([np.roll(query, place, (1, 2)) for query, place in zip(queries, places, strict=True)])


# Of a picture and a seed: what is asked, in order.
ATTACKS: dict[str, Callable[[Pictures, int], Pictures]] = {
    "Square, L∞ 8": lambda image, seed: square(image, "linf", 8, 1000, seed),
    "Square, L∞ 38": lambda image, seed: square(image, "linf", 38, 1000, seed),
    "Square, L∞ 38, of 5,000 queries": lambda image, seed: square(image, "linf", 38, 5000, seed),
    "Square, L2 128": lambda image, seed: square(image, "l2", 128, 1000, seed),
    "noise 1": lambda image, seed: noisy(image, 1, seed),
    "noise 2": lambda image, seed: noisy(image, 2, seed),
    "noise 4": lambda image, seed: noisy(image, 4, seed),
    "noise 8": lambda image, seed: noisy(image, 8, seed),
    "noise 16": lambda image, seed: noisy(image, 16, seed),
    "Square, L∞ 38, each query moved by up to 2 pixels": lambda image, seed: moved(
        square(image, "linf", 38, 1000, seed), seed
    ),
}


def watcher(rows: Pictures) -> NearDuplicates:
    return NearDuplicates(rows[0].size, Counter("rows", "Near", registry=None))


def found(attacked: Pictures, queries: Callable[[Pictures, int], Pictures]) -> tuple[list[float], list[float]]:
    """Of each picture's attack: the share of queries that count, and which query was the first; inf: none."""
    shares, firsts = [], []
    for seed, image in enumerate(attacked):
        watching = watcher(attacked)
        near = np.concatenate([watching.near("one", row[None]) for row in queries(image, seed)])
        shares.append(float(near.mean()))
        firsts.append(float(near.argmax()) + 1 if near.any() else float("inf"))
    return shares, firsts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data", help="where torchvision keeps data sets")
    parser.add_argument("--pictures", type=int, default=30, help="that are attacked, of each data set")
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
        for title, queries in ATTACKS.items():
            shares, firsts = found(rows[: options.pictures], queries)
            results[name][title] = {
                "shares": " ".join(f"{share:.3f}" for share in shares),
                "firsts": " ".join(f"{first:g}" for first in firsts),
            }
            cells[title].append(f"{spread([100 * share for share in shares], 0)} % ({max(firsts):g})")
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
