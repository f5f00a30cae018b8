import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from protos import manifest_file
from protos.ensemble_pb2 import EnsembleManifest
from protos.stored_ensemble import StoredEnsemble
from protos.validate import InvalidEnsemble, Violation, validate
from tests import tiny_ensemble


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    written = tiny_ensemble.write(tmp_path / "ensemble")
    read = validate(tmp_path / "ensemble")
    assert read.manifest == written.manifest
    for i in range(4):
        for name, tensor in tiny_ensemble.weights(i).items():
            np.testing.assert_array_equal(read.weight_sets[f"w{i}"][name], tensor)
    assert read.probe is not None
    np.testing.assert_array_equal(read.probe.inputs, tiny_ensemble.probe(4).inputs)
    np.testing.assert_array_equal(read.probe.logits_MNC, tiny_ensemble.probe(4).logits_MNC)


def test_a_member_is_the_combination_that_its_terms_say(tmp_path: Path) -> None:
    stored = tiny_ensemble.write(tmp_path / "ensemble")
    tensors = stored.tensors(stored.manifest.members[3])
    sets = [tiny_ensemble.weights(k) for k in range(3)]
    for name in sets[0]:
        exact = sum(c * w[name].astype(np.float64) for c, w in zip((0.5625, 0.375, 0.0625), sets, strict=True))
        np.testing.assert_array_equal(tensors[name], np.asarray(exact).astype(np.float32))
    np.testing.assert_array_equal(tensors["bn.running_var"], tiny_ensemble.statistics(3)["bn.running_var"])


def test_the_manifest_is_canonical_protobuf_json_with_every_field_in_sight(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "ensemble")
    document = json.loads((tmp_path / "ensemble/manifest.json").read_text())
    assert document["formatVersion"] == "1.3"
    assert document["members"][0]["endpoint"] == {"run": 0, "epoch": 1}
    assert document["graph"]["sizeBytes"] == str((tmp_path / "ensemble/graph.onnx").stat().st_size)


def test_a_directory_that_is_there_is_replaced_whole(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "ensemble", members=5)
    tiny_ensemble.write(tmp_path / "ensemble", members=2)
    assert len(validate(tmp_path / "ensemble").manifest.members) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble"]


def test_a_refused_ensemble_changes_nothing_on_disk(tmp_path: Path) -> None:
    before = tiny_ensemble.write(tmp_path / "ensemble")
    broken = tiny_ensemble.manifest(4)
    broken.temperature = 0.0
    weight_sets = {f"w{i}": tiny_ensemble.weights(i) for i in range(4)}
    statistics = {f"s{i}": tiny_ensemble.statistics(i) for i in range(4)}
    graph = tiny_ensemble.graph().SerializeToString()
    with pytest.raises(InvalidEnsemble) as caught:
        manifest_file.write(tmp_path / "ensemble", broken, graph, weight_sets, statistics)
    assert caught.value.violation is Violation.BAD_TEMPERATURE

    def disapprove(stored: StoredEnsemble) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        manifest_file.write(
            tmp_path / "ensemble", tiny_ensemble.manifest(4), graph, weight_sets, statistics, approve=disapprove
        )
    assert validate(tmp_path / "ensemble").manifest == before.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble"]


@pytest.mark.parametrize("there", ["file", "folder", "link"])
def test_what_is_no_ensemble_is_never_replaced(tmp_path: Path, there: str) -> None:
    target = tmp_path / "ensemble"
    if there == "file":
        target.write_text("mine")
    elif there == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("mine")
    else:
        tiny_ensemble.write(tmp_path / "elsewhere")
        target.symlink_to(tmp_path / "elsewhere")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match="is there and is no ensemble directory"):
        tiny_ensemble.write(target)
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_where_names_cannot_be_exchanged_the_old_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest_file, "_exchange", lambda first, second: False)
    tiny_ensemble.write(tmp_path / "ensemble", members=5)
    tiny_ensemble.write(tmp_path / "ensemble", members=2)
    assert len(validate(tmp_path / "ensemble").manifest.members) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble"]


def test_files_have_the_permissions_that_the_user_asked_for(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        tiny_ensemble.write(tmp_path / "ensemble")
    finally:
        os.umask(old)
    modes = {path.is_dir(): path.stat().st_mode & 0o777 for path in (tmp_path / "ensemble").rglob("*")}
    assert modes == {True: 0o750, False: 0o640}


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from tests import tiny_ensemble
calls, real = 0, os.fsync
def fsync(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    real(descriptor)
os.fsync = fsync
tiny_ensemble.write(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("files_written", [1, 2, 5, 9, 10])
def test_a_writer_killed_at_any_file_leaves_nothing_that_loads(tmp_path: Path, files_written: int) -> None:
    target = tmp_path / "ensemble"
    command = [sys.executable, "-c", KILLED_WRITER, str(target), str(files_written)]
    done = subprocess.run(command, check=False, env=os.environ | {"PYTHONPATH": os.curdir})
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())


def test_what_a_manifest_says_can_be_amended_and_nothing_else_changes(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "ensemble")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ensemble").rglob("*") if path.is_file()}

    def change(manifest: EnsembleManifest) -> None:
        manifest.robustness.add(attack="none", norm="l2", rows=9, expected_accuracy=0.5, mean_accuracy=0.6)

    manifest_file.amend(tmp_path / "ensemble", change)
    assert validate(tmp_path / "ensemble").manifest.robustness[0].mean_accuracy == 0.6
    after = {path.name: path.read_bytes() for path in (tmp_path / "ensemble").rglob("*") if path.is_file()}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["ensemble"]


def test_an_amendment_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "ensemble")
    path = tmp_path / "ensemble" / "manifest.json"
    before = path.read_bytes()

    def change(manifest: EnsembleManifest) -> None:
        manifest.temperature = 0.0

    with pytest.raises(InvalidEnsemble, match="bad-temperature"):
        manifest_file.amend(tmp_path / "ensemble", change)
    assert path.read_bytes() == before
    newer = path.read_text().replace('"formatVersion": "1.3"', '"formatVersion": "1.9"')
    path.write_text(newer)
    with pytest.raises(ValueError, match=r"format version 1\.9; this program writes 1\.3, and would lose"):
        manifest_file.amend(tmp_path / "ensemble", lambda manifest: None)
    assert path.read_text() == newer


def test_an_older_directory_gets_the_version_of_what_it_now_says(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "ensemble")
    path = tmp_path / "ensemble" / "manifest.json"
    path.write_text(path.read_text().replace('"formatVersion": "1.3"', '"formatVersion": "1.2"'))
    manifest_file.amend(tmp_path / "ensemble", lambda manifest: None)
    assert validate(tmp_path / "ensemble").manifest.format_version == "1.3"
