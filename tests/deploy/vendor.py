"""Keeps the schemas of custom resources in crd/: `python -m tests.deploy.vendor CRD.yaml…`, from what their projects
publish. Descriptions are left out, which are nine tenths of them; origins are listed in crd/README.md.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

CRD = Path(__file__).with_name("crd")


def main(paths: list[str]) -> None:
    for path in paths:
        for definition in yaml.load_all(Path(path).read_text(), yaml.CSafeLoader):
            spec = definition["spec"]
            for version in spec["versions"]:
                schema = without_descriptions(version["schema"]["openAPIV3Schema"])
                kept = {
                    "apiVersion": f"{spec['group']}/{version['name']}",
                    "kind": spec["names"]["kind"],
                    "schema": schema,
                }
                file = CRD / f"{spec['names']['singular']}-{version['name']}.json"
                file.write_text(json.dumps(kept, separators=(",", ":"), sort_keys=True) + "\n")


def without_descriptions(schema: Any) -> Any:
    if isinstance(schema, list):
        return [without_descriptions(each) for each in schema]
    if isinstance(schema, dict):  # a property called description is a schema itself, not a text
        return {
            name: without_descriptions(each)
            for name, each in schema.items()
            if not (name == "description" and isinstance(each, str))
        }
    return schema


if __name__ == "__main__":
    main(sys.argv[1:])
