"""Generates the protobuf code beside its .proto files: `make protos`; `--check` only compares (`make check`).

The Open Inference Protocol's code goes into a private descriptor pool: tritonclient and kserve generate
messages of the same package and names, and protobuf's default pool holds one of each per process.
"""

import argparse
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
WELL_KNOWN = str(resources.files("grpc_tools") / "_proto")


def generate(out: Path) -> list[Path]:
    """Writes the code under `out`; returns the files' paths relative to it."""
    common = ["protoc", f"-I{ROOT}", f"-I{WELL_KNOWN}", f"--python_out={out}", f"--pyi_out={out}"]
    for arguments in (
        [*common, "protos/ensemble.proto"],
        [*common, f"--grpc_python_out={out}", "protos/open_inference_grpc.proto"],
    ):
        if protoc.main(arguments) != 0:
            raise SystemExit(f"protoc failed: {' '.join(arguments)}")
    private = out / "protos/open_inference_grpc_pb2.py"
    code = private.read_text()
    replaced = code.replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
    if replaced == code:
        raise SystemExit(f"{private.name}: no default descriptor pool to replace; protoc's output has changed")
    private.write_text(replaced)
    return sorted(path.relative_to(out) for path in (out / "protos").glob("*_pb2*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed code is not what would be made")
    if not parser.parse_args().check:
        generate(ROOT)
        return
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        stale = [
            str(path)
            for path in generate(made)
            if not (ROOT / path).exists() or (ROOT / path).read_text() != (made / path).read_text()
        ]
    if stale:
        sys.exit(f"generated code is stale: {', '.join(stale)}; run `make protos` and commit the result")


if __name__ == "__main__":
    main()
