"""A small ensemble made by hand: BatchNorm and one linear layer. Its answers are three lines of numpy."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from protos import manifest_file
from protos.curve import CURVES, bezier
from protos.ensemble_pb2 import (
    BEZIER,
    CLASSIFICATION,
    NEXT_TOKEN,
    Cascade,
    CascadeStage,
    Conformal,
    ConformalThreshold,
    Curve,
    CurvePoint,
    Endpoint,
    EnsembleManifest,
    Input,
    Member,
    Metrics,
    Term,
)
from protos.graph import DATATYPES
from protos.stored_ensemble import Probe, StoredEnsemble, Tensors

FEATURES, CLASSES = 4, 3
EPSILON = 1e-5
POOLED_TEMPERATURE = 0.8
CASCADE_THRESHOLD = 0.65
# By policy and level: 1 − p of at most so much.
CONFORMAL = {
    "mean": {0.9: 0.6, 0.99: 0.95},
    "random": {0.9: 0.7, 0.99: 0.97},
    "cascade": {0.9: 0.65, 0.99: 1.0},
}


def weights(seed: int) -> Tensors:
    draw = np.random.default_rng(seed)
    return {
        "bn.weight": draw.uniform(0.5, 1.5, FEATURES).astype(np.float32),
        "bn.bias": draw.normal(size=FEATURES).astype(np.float32),
        "linear.weight": draw.normal(size=(CLASSES, FEATURES)).astype(np.float32),
        "linear.bias": draw.normal(size=CLASSES).astype(np.float32),
    }


def statistics(seed: int) -> Tensors:
    draw = np.random.default_rng(1000 + seed)
    return {
        "bn.running_mean": draw.normal(size=FEATURES).astype(np.float32),
        "bn.running_var": draw.uniform(0.5, 2.0, FEATURES).astype(np.float32),
    }


def graph(datatype: str = "FP32", row_shape: Sequence[int] = (FEATURES,)) -> onnx.ModelProto:
    onnx_type = helper.np_dtype_to_tensor_dtype(DATATYPES[datatype])
    nodes = [
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node(
            "BatchNormalization",
            ["cast", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"],
            ["normalised"],
            epsilon=EPSILON,
        ),
        helper.make_node("Gemm", ["normalised", "linear.weight", "linear.bias"], ["logits"], transB=1),
    ]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "tiny",
            [helper.make_tensor_value_info("input", onnx_type, ["batch", *row_shape])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
            [numpy_helper.from_array(tensor, name) for name, tensor in (weights(0) | statistics(0)).items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def manifest(members: int) -> EnsembleManifest:
    """Endpoints, and as the last member a point at t = 1/4 of a one-bend Bezier curve through the first three."""
    entries = [
        Member(
            id=f"endpoint-{i}",
            endpoint=Endpoint(run=i, epoch=1),
            terms=[Term(weight_set=f"w{i}", coefficient=1.0)],
            statistics=f"s{i}",
            temperature=1.0 + 0.1 * i,
            metrics=[Metrics(predictor="member", split="calibration", rows=10, error=0.1, nll=0.2, brier=0.1, ece=0.1)],
        )
        for i in range(members)
    ]
    if members >= 3:
        entries[-1].id = "curve-0.25"
        entries[-1].curve_point.CopyFrom(CurvePoint(curve=BEZIER, bends=1, t=0.25))
        del entries[-1].terms[:]
        entries[-1].terms.extend(
            Term(weight_set=f"w{k}", coefficient=coefficient) for k, coefficient in enumerate(bezier(1, 0.25))
        )
    ids = [entry.id for entry in entries]
    return EnsembleManifest(
        name="tiny",
        version="1",
        task=CLASSIFICATION,
        input=Input(name="input", datatype="FP32", shape=[FEATURES]),
        class_labels=["a", "b", "c"],
        members=entries,
        temperature=POOLED_TEMPERATURE,
        metrics=[Metrics(predictor="ensemble", split="test", rows=10, error=0.1, nll=0.2, brier=0.1, ece=0.1)],
        cascade=_cascade(ids) if members > 1 else None,
        conformal=[
            Conformal(
                policy=policy,
                rows=100,
                thresholds=[ConformalThreshold(level=level, threshold=value) for level, value in thresholds.items()],
            )
            for policy, thresholds in CONFORMAL.items()
            if policy != "cascade" or members > 1
        ],
    )


def _cascade(ids: list[str]) -> Cascade:
    """From the last member to the first; colder with every member."""
    stages = [
        CascadeStage(member=identifier, temperature=cascade_temperature(k), threshold=CASCADE_THRESHOLD)
        for k, identifier in enumerate(reversed(ids))
    ]
    stages[-1].threshold = 0.0
    return Cascade(stages=stages, accuracy_loss=0.01, members_run=(1 + len(ids)) / 2)


def cascade_temperature(k: int) -> float:
    return max(1.0 - 0.1 * k, 0.1)


def write_repository(directory: Path) -> None:
    """Two versions of `tiny`, and `pictures`."""
    for version in ("1", "2"):
        write(directory / "tiny" / version, version=version)
    write(directory / "pictures", datatype="UINT8", name="pictures", row_shape=(1, 2, 2))


def write(
    directory: Path,
    members: int = 4,
    datatype: str = "FP32",
    name: str = "tiny",
    version: str = "1",
    row_shape: Sequence[int] = (FEATURES,),
) -> StoredEnsemble:
    """row_shape: FEATURES numbers, in any shape."""
    described = manifest(members)
    described.name, described.version = name, version
    described.input.datatype = datatype
    described.input.shape[:] = row_shape
    return manifest_file.write(
        directory,
        described,
        graph(datatype, row_shape).SerializeToString(),
        {f"w{i}": weights(i) for i in range(members)},
        {f"s{i}": statistics(i) for i in range(members)},
        probe=probe(members, datatype, row_shape),
    )


def probe(members: int, datatype: str = "FP32", row_shape: Sequence[int] = (FEATURES,)) -> Probe:
    """Five rows of zeros and ones, which every datatype has."""
    inputs = np.random.default_rng(5).integers(0, 2, (5, *row_shape)).astype(DATATYPES[datatype])
    return Probe(inputs, member_logits(inputs, members).astype(np.float32))


def write_next_token(directory: Path, positions: int = 5) -> StoredEnsemble:
    """One member, whose logits for the token after each are a line of its table."""
    table = {"table": np.random.default_rng(0).normal(size=(CLASSES, CLASSES)).astype(np.float32)}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Gather", ["table", "input"], ["logits"])],
            "bigram",
            [helper.make_tensor_value_info("input", TensorProto.INT64, ["batch", positions])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", positions, CLASSES])],
            [numpy_helper.from_array(table["table"], "table")],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    described = manifest(1)
    described.name, described.task = "bigram", NEXT_TOKEN
    described.input.CopyFrom(Input(name="input", datatype="INT64", shape=[positions]))
    described.members[0].statistics = ""
    tokens = np.arange(2 * positions).reshape(2, positions) % CLASSES
    answered = Probe(tokens, table["table"][tokens][None])
    return manifest_file.write(directory, described, model.SerializeToString(), {"w0": table}, {}, probe=answered)


def member_logits(inputs: NDArray[np.generic], members: int = 4) -> NDArray[np.float64]:
    """[M, B, C], in float64, by the definition."""
    result = []
    for i in range(members):
        w = {name: tensor.astype(np.float64) for name, tensor in weights(i).items()}
        if i == members - 1 and members >= 3:
            sets = [weights(k) for k in range(3)]
            w = {name: 0.5625 * sets[0][name] + 0.375 * sets[1][name] + 0.0625 * sets[2][name] for name in w}
        s = statistics(i)
        x = inputs.reshape(len(inputs), FEATURES).astype(np.float64)
        x = (x - s["bn.running_mean"]) / np.sqrt(s["bn.running_var"] + EPSILON) * w["bn.weight"] + w["bn.bias"]
        result.append(x @ w["linear.weight"].T + w["linear.bias"])
    return np.stack(result)


def member_probs(inputs: NDArray[np.generic], members: int = 4) -> NDArray[np.float64]:
    """[M, B, C], tempered."""
    exponents = np.exp(member_logits(inputs, members) / (1.0 + 0.1 * np.arange(members))[:, None, None])
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def pooled_probs(inputs: NDArray[np.generic], chosen: list[int] | None = None, members: int = 4) -> NDArray[np.float64]:
    """[B, C]: what policies `mean` and `members` answer."""
    probs = member_probs(inputs, members)[chosen if chosen is not None else range(members)]
    mean = probs.mean(0)
    if len(probs) > 1:
        mean = mean ** (1.0 / POOLED_TEMPERATURE)
        mean /= mean.sum(-1, keepdims=True)
    return np.asarray(mean)


def write_curve(
    directory: Path, ts: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0), kind: Curve = BEZIER, bends: int = 1
) -> StoredEnsemble:
    """Points of a curve, each with statistics and a temperature of its own."""
    described = manifest(1)
    del described.members[:]
    described.name = "curve"
    for i, t in enumerate(ts):
        terms = [Term(weight_set=f"w{k}", coefficient=value) for k, value in enumerate(CURVES[kind](bends, t))]
        point = CurvePoint(curve=kind, bends=bends, t=t)
        temperature = 1.0 + 0.1 * i
        described.members.append(
            Member(id=f"m{i}", curve_point=point, terms=terms, statistics=f"s{i}", temperature=temperature)
        )
    return manifest_file.write(
        directory,
        described,
        graph().SerializeToString(),
        {f"w{k}": weights(k) for k in range(bends + 2)},
        {f"s{i}": statistics(i) for i in range(len(ts))},
    )


def point_probs(
    inputs: NDArray[np.generic], t: float, ts: Sequence[float], kind: Curve = BEZIER, bends: int = 1
) -> NDArray[np.float64]:
    """[B, C]: what a network at t answers, between the points `ts` of `write_curve`; by the definition, in float64."""
    sets = [weights(k) for k in range(bends + 2)]
    w = {
        name: sum(c * part[name].astype(np.float64) for c, part in zip(CURVES[kind](bends, t), sets, strict=True))
        for name in sets[0]
    }
    grid = [statistics(i) for i in range(len(ts))]
    s = {
        name: np.array([np.interp(t, ts, [float(part[name][f]) for part in grid]) for f in range(FEATURES)])
        for name in grid[0]
    }
    temperature = np.interp(t, ts, [1.0 + 0.1 * i for i in range(len(ts))])
    x = (inputs - s["bn.running_mean"]) / np.sqrt(s["bn.running_var"] + EPSILON) * w["bn.weight"] + w["bn.bias"]
    exponents = np.exp((x @ w["linear.weight"].T + w["linear.bias"]) / temperature)
    return np.asarray(exponents / exponents.sum(-1, keepdims=True))


def cascade_probs(inputs: NDArray[np.generic], members: int = 4) -> tuple[NDArray[np.float64], list[int]]:
    """[B, C] and how many members each row took, by the definition: a row and a member at a time."""
    probs, run = [], []
    for row in member_probs(inputs, members).swapaxes(0, 1):
        for k in range(members):
            mean = row[::-1][: k + 1].mean(0)
            mean = mean ** (1.0 / cascade_temperature(k)) if k else mean
            mean /= mean.sum()
            if k == members - 1 or mean.max() > CASCADE_THRESHOLD:
                break
        probs.append(mean)
        run.append(k + 1)
    return np.stack(probs), run
