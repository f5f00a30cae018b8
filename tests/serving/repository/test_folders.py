from pathlib import Path

import pytest

from protos.validate import InvalidEnsemble, Violation
from serving.repository import folders
from serving.repository.folders import Folder
from tests import tiny_ensemble


def test_an_ensemble_directory_is_itself_whatever_it_is_called(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "anything")
    (folder,) = folders.find([tmp_path / "anything"])
    assert folder == Folder(tmp_path / "anything")
    assert folder.read().manifest.name == "tiny"


def test_a_repository_holds_names_and_versions(tmp_path: Path) -> None:
    tiny_ensemble.write(tmp_path / "repo/one", name="one")
    tiny_ensemble.write(tmp_path / "repo/two/1", name="two")
    tiny_ensemble.write(tmp_path / "repo/two/10", name="two", version="10")
    (tmp_path / "repo/notes").mkdir()
    (tmp_path / "repo/README.md").write_text("of no interest")
    (tmp_path / "repo/two/.20.new-01234567").mkdir()
    (tmp_path / "repo/two/.20.new-01234567/manifest.json").write_text("half")
    found = folders.find([tmp_path / "repo"])
    assert [folder.path.relative_to(tmp_path / "repo").as_posix() for folder in found] == ["one", "two/1", "two/10"]
    assert [(folder.read().manifest.name, folder.read().manifest.version) for folder in found] == [
        ("one", "1"),
        ("two", "1"),
        ("two", "10"),
    ]


@pytest.mark.parametrize(
    ("place", "message"),
    [("repo/other", "the name in .*other' is 'tiny'; its folder .* is called 'other'"),
     ("repo/tiny/7", "the version in .*7' is '1'; its folder .* is called '7'")],
)  # fmt: skip
def test_a_folder_that_says_another_name_or_version_is_refused(tmp_path: Path, place: str, message: str) -> None:
    tiny_ensemble.write(tmp_path / place)
    (folder,) = folders.find([tmp_path / "repo"])
    with pytest.raises(InvalidEnsemble, match=message) as caught:
        folder.read()
    assert caught.value.violation is Violation.BAD_NAME


def test_a_folder_without_ensembles_is_refused(tmp_path: Path) -> None:
    (tmp_path / "repo/name/version").mkdir(parents=True)
    with pytest.raises(InvalidEnsemble, match=r"no NAME/VERSION/manifest\.json") as caught:
        folders.find([tmp_path / "repo"])
    assert caught.value.violation is Violation.NO_MANIFEST
    with pytest.raises(InvalidEnsemble) as caught:
        folders.find([tmp_path / "nothing"])
    assert caught.value.violation is Violation.NO_DIRECTORY
