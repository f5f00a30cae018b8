"""Generated requests against a real server: each answer is right, or the error that the documentation says."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protos import open_inference_grpc_pb2 as oip
from protos.open_inference_grpc_pb2_grpc import GRPCInferenceServiceStub
from serving.bytes_tensor import unpack
from tests import tiny_ensemble
from tests.hostile.generated import CLASSES, MEMBERS, Case, cases
from tests.server_process import ServerProcess

MIB = 2**20


@pytest.fixture(scope="module")
def server(tiny_directory: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tiny_directory) as server:
        yield server


@pytest.fixture(scope="module")
def stub(server: ServerProcess) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def resident_bytes(server: ServerProcess) -> int:
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def check(stub: GRPCInferenceServiceStub, case: Case) -> str:
    """Returns the code."""
    call = stub.ModelInfer.future(case.request, timeout=30)
    code = call.code().name
    assert code == case.code, (case.wrong, call.details())
    if code == "OK":
        check_answer(case, call.result())
    else:
        assert 0 < len(call.details()) <= 500
    return str(code)


def check_answer(case: Case, response: oip.ModelInferResponse) -> None:
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", case.request.id)
    assert response.parameters["policy"].string_param == case.policy
    names = [output.name for output in response.outputs]
    assert names == (case.outputs or ["probs", "entropy", "mutual_information"])
    answers = dict(zip(names, response.raw_output_contents, strict=True))
    members_MBC = tiny_ensemble.member_probs(case.rows)
    if case.policy == "random":
        answered_by_one(case, answers, members_MBC)
        return
    ran_MB = np.zeros(members_MBC.shape[:2], bool)
    if case.policy == "cascade":
        probs, run = tiny_ensemble.cascade_probs(case.rows)
        ran_MB[:] = np.arange(MEMBERS)[:, None] >= MEMBERS - np.array(run)  # from the last member to the first
    else:
        probs = tiny_ensemble.pooled_probs(case.rows, case.members)
        ran_MB[case.members] = True
    members_MBC = members_MBC * ran_MB[:, :, None]
    count_B = ran_MB.sum(0)
    energy_MB = -np.log(np.exp(tiny_ensemble.member_logits(case.rows)).sum(-1)) * ran_MB
    shown = case.members if case.policy == "members" else range(MEMBERS)
    threshold = tiny_ensemble.CONFORMAL.get(case.policy, {}).get(0.9 if case.level <= 0.9 else 0.99, 1.0)
    expected = {
        "probs": probs,
        "entropy": entropy(probs),
        "mutual_information": entropy(members_MBC.sum(0) / count_B[:, None]) - entropy(members_MBC).sum(0) / count_B,
        "member_probs": members_MBC[shown].swapaxes(0, 1),
        "energy": energy_MB.sum(0) / count_B,
        "members_run": count_B,
        "prediction_set": (1 - probs <= threshold) | (probs == probs.max(1, keepdims=True)),
    }
    for name, data in answers.items():
        if k := case.classification.get(name):
            check_classes(data, probs, k)
        elif name == "label":
            assert unpack(data, len(probs)) == ["abc"[index].encode() for index in probs.argmax(1)]
        elif name in ("members_run", "prediction_set"):
            kind = "<i4" if name == "members_run" else "?"
            np.testing.assert_array_equal(np.frombuffer(data, kind).reshape(expected[name].shape), expected[name])
        else:
            found = values(data, expected[name].shape)
            np.testing.assert_allclose(found, expected[name], atol=2e-6, rtol=2e-6)


def answered_by_one(case: Case, answers: dict[str, bytes], members_MBC: np.ndarray) -> None:
    """Every row is the answer of some member."""
    rows = len(case.rows)
    if "probs" in answers and not case.classification:
        distance_MB = np.abs(members_MBC - values(answers["probs"], (rows, CLASSES))).max(2)
        assert (distance_MB.min(0) < 2e-6).all()
    if "member_probs" in answers:
        distance_MB = np.abs(members_MBC - values(answers["member_probs"], (rows, CLASSES))).max(2)
        assert (distance_MB.min(0) < 2e-6).all()
    if "mutual_information" in answers:
        np.testing.assert_allclose(values(answers["mutual_information"], (rows,)), 0, atol=2e-6)


def check_classes(data: bytes, probs: np.ndarray, k: int) -> None:
    texts = []
    while data:
        size = int.from_bytes(data[:4], "little")
        texts.append(data[4 : 4 + size].decode())
        data = data[4 + size :]
    assert len(texts) == len(probs) * k
    for i, row in enumerate(probs):
        found = [text.split(":") for text in texts[i * k : (i + 1) * k]]
        np.testing.assert_allclose([float(value) for value, _, _ in found], np.sort(row)[::-1][:k], atol=2e-6)
        for value, index, label in found:
            assert float(value) == pytest.approx(row[int(index)], abs=2e-6)
            assert label == "abc"[int(index)]


def values(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, "<f4").reshape(shape)


def entropy(probs: np.ndarray) -> np.ndarray:
    return np.asarray(-(probs * np.log(np.maximum(probs, 1e-300))).sum(-1))


def generate(count: int, test):  # type: ignore[no-untyped-def]
    """Runs `test` on so many cases, the same whenever the same modules are loaded: Hypothesis tries their constants."""
    options = settings(
        max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    options(given(st.data())(lambda data: test(data.draw(cases()))))()


def test_generated_requests_get_the_right_answer_or_the_documented_error(stub: GRPCInferenceServiceStub) -> None:
    seen: Counter[str] = Counter()
    generate(300, lambda case: seen.update([check(stub, case)]))
    assert min(seen[code] for code in ("OK", "INVALID_ARGUMENT", "NOT_FOUND")) >= 5, seen


@pytest.mark.slow
def test_ten_thousand_of_them_leave_memory_flat(server: ServerProcess, stub: GRPCInferenceServiceStub) -> None:
    resident: list[int] = []

    def run(case: Case) -> None:
        check(stub, case)
        resident.append(resident_bytes(server))

    generate(10_000, run)
    assert len(resident) >= 10_000
    early, late = max(resident[1_000:3_000]), max(resident[-2_000:])
    print(f"{len(resident)} requests: {early / MIB:.1f} MiB, then {late / MIB:.1f} MiB")
    assert late - early < 4 * MIB
