import stat
from pathlib import Path

import pytest

from tests import tiny_ensemble
from trainer.__main__ import main


def test_a_key_is_made_signs_and_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, key = tmp_path / "tiny", tmp_path / "key.pem"
    tiny_ensemble.write(directory)
    assert main(["keygen", str(key)]) == 0
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    asked = ["validate", str(directory), "--require-signature", f"{key}.pub"]
    assert main(asked) == 2
    assert "unsigned: " in capsys.readouterr().err
    assert main(["sign", str(directory), "--key", str(key)]) == 0
    assert main(asked) == 0

    assert main(["keygen", str(key)]) == 2  # a key is never written over
    assert "File exists" in capsys.readouterr().err
    assert main(["sign", str(directory), "--key", f"{key}.pub"]) == 2
    assert "no private key in PEM" in capsys.readouterr().err


def test_what_is_not_valid_is_not_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, key = tmp_path / "tiny", tmp_path / "key.pem"
    tiny_ensemble.write(directory)
    (directory / "graph.onnx").write_bytes(b"")
    main(["keygen", str(key)])
    assert main(["sign", str(directory), "--key", str(key)]) == 2
    assert "wrong-size" in capsys.readouterr().err
    assert not (directory / "manifest.sig").exists()
