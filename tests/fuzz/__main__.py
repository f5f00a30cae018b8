"""`python -m tests.fuzz request|http|manifest [libFuzzer options]` looks for bytes that crash a reader (extra [fuzz]).

Coverage of our own modules guides it. What it finds anew goes to runs/fuzz/; keep the telling ones with
`python -m tests.fuzz request -merge=1 tests/fuzz/corpus/request runs/fuzz/request`.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["protos.validate", "protos.graph", "serving"]):
    from tests.fuzz.targets import CORPUS, TARGETS


def main() -> None:
    name, *options = sys.argv[1:]
    with TARGETS[name]() as target:
        folders = []
        if not any(option.startswith("-merge") for option in options):
            found = Path("runs/fuzz") / name
            found.mkdir(parents=True, exist_ok=True)
            folders = [str(found), str(CORPUS / name)]

        def one_input(data: bytes) -> None:
            target(data)

        # libFuzzer starts itself again to merge, by a shell and this name.
        program = f"{sys.executable} -m tests.fuzz {name}"
        atheris.Setup([program, *options, *folders], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
