"""Near duplicates on real digits: queries of Square are found, rows that are asked about once are not."""

import urllib.request
from typing import Any

import numpy as np
import pytest
from prometheus_client import Counter
from sklearn.datasets import load_digits

from benchmarks.near_duplicates import square
from serving import near_duplicates
from serving.client import Client
from serving.near_duplicates import NearDuplicates
from tests.server_process import ServerProcess

DIGITS = np.rint(load_digits().images * (255 / 16)).astype(np.uint8)[:, None]  # [1797, 1, 8, 8]


def watcher(row_values: int = 64) -> NearDuplicates:
    return NearDuplicates(row_values, Counter("rows", "Near", registry=None))


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 8.0), ("linf", 38.0), ("l2", 128.0)])
@pytest.mark.parametrize("index", [0, 1, 2])
def test_most_of_the_first_queries_of_square_are_found(index: int, norm: str, epsilon: float) -> None:
    found = watcher()
    near = np.concatenate(
        [found.near("attacker", row[None]) for row in square(DIGITS[index], norm, epsilon, 1000, seed=0)]
    )
    assert near[:50].any()
    assert near.mean() > 0.5


def test_rows_that_are_asked_about_once_are_not() -> None:
    assert watcher().near("one", DIGITS).mean() < 0.001


def test_a_repeat_is_found_within_a_request_and_after_it_for_the_same_client_alone() -> None:
    found = watcher()
    assert found.near("one", DIGITS[[0, 1, 0, 0]]).tolist() == [False, False, True, True]
    assert found.near("one", DIGITS[[2, 1]]).tolist() == [False, True]
    assert found.near("two", DIGITS[[0, 1, 2]]).tolist() == [False] * 3


def test_a_row_of_one_colour_tells_nothing() -> None:
    assert not watcher().near("one", np.zeros((3, 1, 8, 8), np.uint8)).any()


def test_the_least_significant_bits_of_pixels_do_not_matter() -> None:
    found, draw = watcher(3 * 32 * 32), np.random.default_rng(0)
    rows = draw.integers(0, 16, (20, 3, 32, 32)).astype(np.uint8) * 16
    assert not found.near("one", rows + 8).any()
    assert found.near("one", rows + draw.integers(0, 16, rows.shape).astype(np.uint8)).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_rows_of_any_kind_are_compared(dtype: Any) -> None:
    draw = np.random.default_rng(0)
    rows = (draw.normal(size=(20, 100)) * 10).astype(dtype)
    found = watcher(100)
    assert not found.near("one", rows).any()
    if dtype in (np.float32, np.float64):
        rows *= dtype(1.0001)
    assert found.near("one", rows).all()


def test_a_row_is_forgotten_after_many_others_in_the_same_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "SLOT_BITS", 6)
    found, draw = watcher(), np.random.default_rng(0)
    found.near("one", DIGITS[:1])
    found.near("one", draw.integers(0, 256, (10, 64), np.uint8))
    assert found.near("one", DIGITS[:1]).all()
    found.near("two", draw.integers(0, 256, (1000, 64), np.uint8))
    assert not found.near("one", DIGITS[:1]).any()


def counted(server: ServerProcess) -> float:
    with urllib.request.urlopen(f"http://{server.metrics}/metrics") as response:
        lines = response.read().decode().splitlines()
    (line,) = [line for line in lines if line.startswith("ensemble_near_duplicate_rows_total{")]
    return float(line.rpartition(" ")[2])


def test_a_server_counts_them_by_model(small_run: Any) -> None:
    rows = np.load(small_run.test_file)["inputs"]
    with (
        ServerProcess(small_run.ensembles["fge"], "--near-duplicates") as server,
        Client(server.grpc, "digits") as client,
    ):
        client.predict(rows)
        assert counted(server) <= 0.001 * len(rows)
        for row in square(DIGITS[0], "linf", 38.0, 1000, seed=0):
            client.predict(row[None])
        assert counted(server) > 100


def test_models_of_few_numbers_are_not_watched(tiny_directory: Any) -> None:
    with ServerProcess(tiny_directory, "--near-duplicates") as server:
        with pytest.raises(ValueError, match="not enough values to unpack"):
            counted(server)
        _, log = server.stop()
    assert "near duplicates are not counted model=tiny values_in_a_row=4" in log
