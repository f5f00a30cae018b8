"""What the fuzzer found worth keeping, and what once broke a reader, again: without the fuzzer."""

from collections import Counter

import pytest

from tests.fuzz.targets import CORPUS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_every_file_of_the_corpus_is_taken_or_refused_as_documented(name: str) -> None:
    files = sorted((CORPUS / name).iterdir())
    taken: Counter[bool] = Counter()
    with TARGETS[name]() as target:
        for path in files:
            try:
                taken[target(path.read_bytes())] += 1
            except Exception as error:
                raise AssertionError(f"{path.name}: {error!r}") from error
    assert taken[True] >= 3  # both sides of the door are there
    assert taken[False] >= 20
