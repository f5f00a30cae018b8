"""What everybody serves: eight PreResNet-20 of random weights, since the time of a network is that of its shapes.

    python -m benchmarks.serve.ensemble --out runs/serve/ensemble

OUT/thalweg           the ensemble as we serve it
OUT/member-I.onnx     a member on its own: input uint8 [B, 3, 32, 32] → `logits` [B, 10]
OUT/fused.onnx        all members in one graph → `probs` [B, 10], the mean of their softmax
"""

import argparse
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper

MEMBERS, CLASSES, SHAPE = 8, 10, (3, 32, 32)
PROBE_ROWS = 16
# Freshly initialised networks all say "one tenth". Members and rows must differ, or a wrong answer would go unnoticed.
SHARPER = 10.0


def write(out: Path) -> None:
    """`thalweg` last: the folder is complete if that is there."""
    import torch

    from protos import manifest_file
    from protos.ensemble_pb2 import CLASSIFICATION, EnsembleManifest, Input, Member
    from protos.graph import with_tensors
    from protos.stored_ensemble import Probe
    from trainer import export
    from trainer.models.preresnet import preresnet
    from trainer.network import Network, Normalise

    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = Network(lambda: preresnet(CLASSES, depth=20), Normalise([125.0] * 3, [65.0] * 3, input_axes=4))
    graph = export.graph(network, torch.zeros(4, *SHAPE, dtype=torch.uint8))
    manifest = EnsembleManifest(
        name="ensemble",
        version="1",
        task=CLASSIFICATION,
        input=Input(name="input", datatype="UINT8", shape=SHAPE),
        class_labels=[str(c) for c in range(CLASSES)],
        temperature=1.0,
    )
    weight_sets, statistics, models = {}, {}, []
    for i in range(MEMBERS):
        weights = export.weight_tensors(network, graph, network.initial_weights())
        weights["head.4.weight"] = np.float32(SHARPER) * weights["head.4.weight"].astype(np.float32)
        drawn = {name: tensor + 0.5 * torch.rand(tensor.shape) for name, tensor in network.initial_statistics().items()}
        weight_sets[f"w{i}"], statistics[f"s{i}"] = weights, export.statistic_tensors(graph, drawn)
        member = Member(id=f"m{i}", statistics=f"s{i}", temperature=1.0)
        member.terms.add(weight_set=f"w{i}", coefficient=1.0)
        member.endpoint.run = i
        member.endpoint.epoch = 1
        manifest.members.append(member)
        models.append(with_tensors(graph.model, weights | statistics[f"s{i}"]))
        onnx.save_model(models[-1], member_path(out, i))
    onnx.save_model(fused(models), out / "fused.onnx")
    probe = Probe(rows(PROBE_ROWS), logits(out, rows(PROBE_ROWS)))
    manifest_file.write(
        out / "thalweg", manifest, graph.model.SerializeToString(), weight_sets, statistics, probe=probe
    )


def fused(models: list[onnx.ModelProto]) -> onnx.ModelProto:
    """input → `probs` [B, C], the mean of the models' softmax."""
    whole = onnx.ModelProto()
    whole.CopyFrom(models[0])
    del whole.graph.node[:], whole.graph.initializer[:], whole.graph.output[:], whole.graph.value_info[:]
    members = []
    for i, model in enumerate(models):
        renamed = compose.add_prefix(model, f"{i}/", rename_inputs=False)
        whole.graph.node.extend(renamed.graph.node)
        whole.graph.initializer.extend(renamed.graph.initializer)
        members.append(f"{i}/probs")
        whole.graph.node.append(helper.make_node("Softmax", [f"{i}/logits"], members[-1:], axis=-1))
    whole.graph.node.append(helper.make_node("Mean", members, ["probs"]))
    whole.graph.output.append(helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["batch", CLASSES]))
    onnx.checker.check_model(whole)
    return whole


def rows(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """[count, 3, 32, 32]: noise over a colour of each row's own."""
    draw = np.random.default_rng(seed)
    colours = draw.uniform(0, 255, (count, SHAPE[0], 1, 1))
    return np.clip(colours + draw.normal(0, 40, (count, *SHAPE)), 0, 255).astype(np.uint8)


def member_path(directory: Path, i: int) -> Path:
    return directory / f"member-{i}.onnx"


def logits(directory: Path, inputs: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[M, B, C], from a plain session a member."""
    import onnxruntime

    sessions = (
        onnxruntime.InferenceSession(member_path(directory, i), providers=["CPUExecutionProvider"])
        for i in range(MEMBERS)
    )
    return np.stack([session.run(["logits"], {"input": inputs})[0] for session in sessions])


def reference(directory: Path, inputs: NDArray[np.uint8]) -> NDArray[np.float64]:
    """[B, C]: the right answer, the mean of the members' softmax in numpy."""
    logits_MBC = logits(directory, inputs).astype(np.float64)
    powers_MBC = np.exp(logits_MBC - logits_MBC.max(axis=-1, keepdims=True))
    return np.asarray((powers_MBC / powers_MBC.sum(axis=-1, keepdims=True)).mean(axis=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/serve/ensemble"))
    write(parser.parse_args().out)


if __name__ == "__main__":
    main()
