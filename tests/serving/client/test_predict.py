import csv
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.client import Client
from serving.client.predict import main
from serving.client.watched_folder import Folder
from tests import tiny_ensemble
from tests.server_process import ROOT, ServerProcess


@pytest.fixture(scope="module")
def server(small_run) -> Iterator[ServerProcess]:  # type: ignore[no-untyped-def]
    with ServerProcess(small_run.ensembles["curve"]) as server:
        yield server


@pytest.fixture
def digits(small_run) -> np.ndarray:  # type: ignore[no-untyped-def]
    with np.load(small_run.test_file) as file:
        return file["inputs"][:2]


def ask(server: ServerProcess, *arguments: str | Path) -> int:
    return main([*map(str, arguments), "--target", server.grpc, "--model", "digits"])


def hear_interrupts() -> None:
    """In a child: whoever starts the tests in the background may have it ignore SIGINT, which is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_arrays_and_pictures_are_answered_in_a_table(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "two.npy", digits)
    np.save(tmp_path / "one.npy", digits[1])
    Image.fromarray(digits[0, 0]).save(tmp_path / "grey.png")
    Image.fromarray(digits[0, 0]).convert("RGBA").resize((80, 80), Image.Resampling.NEAREST).save(tmp_path / "big.png")
    files = [tmp_path / name for name in ("two.npy", "one.npy", "grey.png", "big.png")]
    assert ask(server, *files) == 0
    output = capsys.readouterr().out
    lines = {line.split()[1]: line.split()[3:9] for line in output.splitlines() if ".npy" in line or ".png" in line}
    assert list(lines) == ["two.npy[0]", "two.npy[1]", "one.npy[0]", "grey.png", "big.png"]
    assert lines["two.npy[0]"] == lines["grey.png"]
    assert lines["two.npy[1]"] == lines["one.npy[0]"]
    assert "policy mean, members run 5" in output


def test_csv_holds_each_row_in_order(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "many.npy", digits[[0, 1] * 40])  # more than one request takes
    assert ask(server, tmp_path / "many.npy", "--csv", tmp_path / "out.csv", "--top", "2") == 0
    assert ask(server, tmp_path / "many.npy", "--csv", "-", "--top", "2") == 0
    text = (tmp_path / "out.csv").read_text()
    assert capsys.readouterr().out == text
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["row"] for row in rows] == [f"many.npy[{i}]" for i in range(80)]
    assert list(rows[0])[3:] == ["entropy", "mutual_information", "class_1", "prob_1", "class_2", "prob_2"]
    assert (rows[0]["policy"], rows[0]["members_run"]) == ("mean", "5")
    with Client(server.grpc, "digits") as client:
        probs = client.predict(digits).probs
    for i, row in enumerate(rows):
        assert row["class_1"] == str(probs[i % 2].argmax())
        assert float(row["prob_1"]) == pytest.approx(probs[i % 2].max(), rel=1e-4)


def test_files_that_appear_in_a_watched_folder_are_answered_until_the_process_is_interrupted(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(digits[0, 0]).save(tmp_path / "in/first.png")
    command = [sys.executable, "-m", "serving.client.predict", "--watch-folder", str(tmp_path / "in"), "--csv", "-"]
    process = subprocess.Popen(
        [*command, "--target", server.grpc, "--model", "digits"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith("row,")
    assert process.stdout.readline().startswith("first.png,")
    whole = tmp_path / "whole.png"
    Image.fromarray(digits[1, 0]).resize((500, 500)).save(whole)
    (tmp_path / "in/second.png").write_bytes(whole.read_bytes()[:500])
    assert "'" + str(tmp_path / "in/second.png") + "' cannot be read as a picture" in process.stderr.readline()
    (tmp_path / "in/second.png").write_bytes(whole.read_bytes())
    assert process.stdout.readline().startswith("second.png,")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_watcher_waits_for_a_server_that_is_away_and_misses_no_file(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    tiny_ensemble.write(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "serving.client.predict", "--watch-folder", str(tmp_path / "in"), "--csv", "-"]
    with ServerProcess(tmp_path / "tiny", "--grpc-port", port) as server:
        process = subprocess.Popen(
            [*command, "--target", server.grpc, "--model", "tiny"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_interrupts,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("row,")
    np.save(tmp_path / "in/a.npy", np.zeros(4, np.float32))
    assert process.stderr.readline().startswith("thalweg-predict: trying again: ")
    with ServerProcess(tmp_path / "tiny", "--grpc-port", port):
        assert process.stdout.readline().startswith("a.npy[0],mean,4,")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_a_server_of_labels_alone_is_shown(
    tiny_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 4), np.float32))
    with ServerProcess(tiny_directory, "--labels-only") as server:
        arguments = [str(tmp_path / "x.npy"), "--target", server.grpc, "--model", "tiny"]
        assert main(arguments) == 0
        assert main([*arguments, "--csv", "-", "--top", "1"]) == 0
    table, text = capsys.readouterr().out.split("row,policy", 1)
    label = "abc"[tiny_ensemble.pooled_probs(np.zeros((1, 4))).argmax()]
    assert [line.split()[1:4:2] for line in table.splitlines() if ".npy" in line] == [
        ["x.npy[0]", label],
        ["x.npy[1]", label],
    ]
    assert text.splitlines()[1:] == [f"x.npy[{i}],mean,0,,,{label}," for i in range(2)]


def test_a_file_is_taken_once_it_has_stopped_changing_and_again_after_a_change(tmp_path: Path) -> None:
    folder, file = Folder(tmp_path), tmp_path / "a.PNG"
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    file.write_bytes(b"x")
    assert folder.look() == []
    file.write_bytes(b"xy")
    assert folder.look() == []
    assert folder.look() == [file]
    assert folder.look() == []
    os.utime(file, ns=(1, 1))
    (tmp_path / "b.npy").write_bytes(b"")
    assert folder.look() == []
    assert folder.look() == [file, tmp_path / "b.npy"]  # the older one first
    file.unlink()
    assert folder.look() == []
    file.write_bytes(b"new")
    os.utime(file, ns=(1, 1))
    assert [folder.look(), folder.look()] == [[], [file]]


def test_either_files_or_a_folder_are_expected(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--model", "x"], ["a.png", "--watch-folder", ".", "--model", "x"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "expected either files or --watch-folder" in capsys.readouterr().err


def test_policy_and_members_are_passed_on(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", digits)
    assert ask(server, tmp_path / "x.npy", "--members", "0,4") == 0
    assert "policy members, members run 2" in capsys.readouterr().out
    assert ask(server, tmp_path / "x.npy", "--policy", "random") == 0
    assert "policy random, members run 1" in capsys.readouterr().out


def test_files_that_cannot_be_used_are_refused(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "shape.npy", digits[:, :, :4])
    np.save(tmp_path / "type.npy", digits.astype(np.float32))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "wide.npy", digits.astype(np.uint16))
    (tmp_path / "empty.npy").touch()
    np.savez(tmp_path / "zip.npz", digits)
    (tmp_path / "zip.npz").rename(tmp_path / "zip.npy")
    header = {"descr": "|u1", "fortran_order": False, "shape": (2**45,)}
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(digits[0, 0]).resize((500, 500)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:500])
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    for name, message in (
        ("shape.npy", "is [2, 1, 4, 8]; the model takes [1, 8, 8] or [B, 1, 8, 8]"),
        ("type.npy", "holds float32; the model takes UINT8"),
        ("pickle.npy", "is not an array file"),
        ("wide.npy", "holds uint16; the model takes UINT8"),
        ("empty.npy", "is not an array file"),
        ("zip.npy", "is not an array file"),
        ("huge.npy", "is not an array file"),
        ("text.png", "is neither a picture nor .npy"),
        ("cut.png", "cannot be read as a picture"),
        ("bomb.png", "cannot be read as a picture"),
        ("none.png", "No such file"),
    ):
        assert ask(server, tmp_path / name) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--members", ""], ["--members", "0,,1"], ["--top", "0"]])
def test_wrong_options_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["x.npy", "--model", "digits", *arguments])
    assert caught.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_names_that_look_like_markup_are_text(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x[b]y[red].npy", digits[0])
    assert ask(server, tmp_path / "x[b]y[red].npy") == 0
    assert "x[b]y[red].npy[0]" in capsys.readouterr().out


def test_what_the_server_refuses_is_told(
    server: ServerProcess, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", digits)
    assert ask(server, tmp_path / "x.npy", "--members", "77") == 1
    assert "INVALID_ARGUMENT: member 77 is out of range; expected 0 to 4" in capsys.readouterr().err
    assert main([str(tmp_path / "x.npy"), "--target", "127.0.0.1:1", "--model", "digits", "--timeout", "5"]) == 1
    assert "127.0.0.1:1 answered UNAVAILABLE" in capsys.readouterr().err
