"""The README's map names every file that is there, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
MAPPED = ("protos", "trainer", "serving", "benchmarks", "docs", "tests")
NOT_MAPPED = {"__init__.py", "py.typed"}


def mapped_files() -> dict[str, list[str]]:
    """Paths named on the map, by top folder."""
    block = README.partition("## Map")[2].split("```")[1].strip("\n")
    files: dict[str, list[str]] = {}
    folder = ""
    for line in block.splitlines():
        names = line.strip().split("   ")[0]
        if not line.startswith(" "):
            folder = names.split("/")[0] if "/" in names else ""
            continue
        files.setdefault(folder, []).extend(name for name in re.split(r",?\s+", names) if "." in name)
    return files


def test_every_file_has_one_line_and_every_line_a_file() -> None:
    for folder in MAPPED:
        pattern = "*.md" if folder == "docs" else "*.py"
        there = sorted(
            path.relative_to(ROOT / folder).as_posix()
            for path in (ROOT / folder).rglob(pattern)
            if path.name not in NOT_MAPPED
            and not (folder == "tests" and path.parent != ROOT / "tests")  # its folders mirror the code
        )
        assert sorted(name for name in mapped_files()[folder] if not name.endswith(".proto")) == there


def test_every_relative_link_and_picture_leads_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
