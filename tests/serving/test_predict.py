from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serving.predict import main
from tests.server_process import ServerProcess


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


@pytest.mark.parametrize("arguments", [["--members", "abc"], ["--members", ""], ["--members", "0,,1"], ["--top", "0"]])
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
