import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from serving.combine import combine, energy


def slow(logits_MBC, mask_MB, temperatures_M, temperature):  # type: ignore[no-untyped-def]
    """The definitions, one row and one member at a time."""
    probs, entropies, informations = [], [], []
    for b in range(logits_MBC.shape[1]):
        rows = [np.exp(z / t) for z, t, on in zip(logits_MBC[:, b], temperatures_M, mask_MB[:, b], strict=True) if on]
        members = [row / row.sum() for row in rows]
        mean = sum(members) / len(members)
        entropy = lambda p: -sum(x * np.log(x) for x in p)  # noqa: E731
        informations.append(entropy(mean) - sum(map(entropy, members)) / len(members))
        pooled = mean ** (1 / temperature) if len(members) > 1 else mean
        probs.append(pooled / pooled.sum())
        entropies.append(entropy(probs[-1]))
    return np.stack(probs), np.array(entropies), np.array(informations)


def test_answers_equal_the_definitions() -> None:
    draw = np.random.default_rng(0)
    logits_MBC = draw.normal(size=(5, 40, 7)) * 3
    mask_MB = draw.random((5, 40)) < 0.5
    mask_MB[0, ~mask_MB.any(0)] = True
    assert (mask_MB.sum(0) == 1).any()
    assert (mask_MB.sum(0) > 1).any()
    temperatures_M = draw.uniform(0.5, 2.0, 5)
    found = combine(logits_MBC, mask_MB, temperatures_M[:, None], 0.8)
    probs, entropy, information = slow(logits_MBC, mask_MB, temperatures_M, 0.8)
    np.testing.assert_allclose(found.probs_BC, probs, atol=1e-12)
    np.testing.assert_allclose(found.entropy_B, entropy, atol=1e-12)
    np.testing.assert_allclose(found.mutual_information_B, information, atol=1e-12)
    assert (found.member_probs_MBC[~mask_MB] == 0).all()
    np.testing.assert_allclose(found.member_probs_MBC[mask_MB].sum(-1), 1.0, atol=1e-12)


@pytest.mark.parametrize("magnitude", [1e4, 3e38])
def test_huge_logits_give_finite_answers(magnitude: float) -> None:
    logits_MBC = np.array([[[-magnitude, magnitude]], [[magnitude, -magnitude]], [[-100.0, 10.0]]], np.float32)
    found = combine(logits_MBC, np.ones((3, 1), bool), np.ones((3, 1)), 0.5)
    assert np.isfinite(found.probs_BC).all()
    assert found.probs_BC[0, 1] == pytest.approx(0.8)  # (2/3)² against (1/3)²
    assert found.mutual_information_B[0] == pytest.approx(-(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3)), abs=1e-9)


@given(
    arrays(np.float32, (3, 2, 4), elements=st.floats(-1e6, 1e6, width=32)),
    st.floats(0.1, 10.0),
)
def test_probabilities_sum_to_one_and_information_lies_in_its_range(logits_MBC, temperature: float) -> None:  # type: ignore[no-untyped-def]
    found = combine(logits_MBC, np.ones((3, 2), bool), np.ones((3, 1)), temperature)
    np.testing.assert_allclose(found.probs_BC.sum(-1), 1.0, atol=1e-9)
    assert (found.mutual_information_B >= 0).all()
    assert (found.mutual_information_B <= np.log(3) + 1e-9).all()
    assert (found.entropy_B <= np.log(4) + 1e-9).all()


def test_members_that_agree_have_no_mutual_information() -> None:
    logits_MBC = np.repeat(np.array([[[1.0, 2.0, 3.0]]]), 4, axis=0)
    assert combine(logits_MBC, np.ones((4, 1), bool), np.ones((4, 1)), 0.7).mutual_information_B[0] < 1e-15


def test_rows_may_have_temperatures_of_their_own() -> None:
    draw = np.random.default_rng(0)
    logits_MBC = draw.normal(size=(3, 4, 5))
    mask_MB = np.ones((3, 4), bool)
    together = combine(logits_MBC, mask_MB, np.ones((3, 1)), np.array([0.5, 1.0, 2.0, 0.5]))
    for row, temperature in enumerate([0.5, 1.0, 2.0, 0.5]):
        alone = combine(logits_MBC[:, row : row + 1], mask_MB[:, :1], np.ones((3, 1)), temperature)
        np.testing.assert_allclose(together.probs_BC[row], alone.probs_BC[0], atol=1e-15)


def test_energy_is_finite_for_huge_logits_and_counts_the_members_that_ran() -> None:
    logits_MBC = np.array([[[3e38, -3e38]], [[1.0, 1.0]], [[5.0, 5.0]]], np.float32)
    found = energy(logits_MBC, np.array([[False], [True], [True]]))
    assert found[0] == pytest.approx(-(1.0 + 5.0) / 2 - np.log(2))
    assert energy(logits_MBC, np.ones((3, 1), bool))[0] == pytest.approx(-1e38)
