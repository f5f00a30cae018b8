"""Writes an ensemble directory: beside its final place, checked as a reader would, then renamed.

An interruption at any moment leaves a folder whose name begins with a dot and that nobody loads, never half
of an ensemble under its own name.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import safetensors.numpy
from google.protobuf import json_format

from protos.ensemble_pb2 import EnsembleManifest, File, TensorSet
from protos.stored_ensemble import StoredEnsemble, Tensors
from protos.validate import FORMAT_MAJOR, FORMAT_MINOR, MANIFEST, validate


def write(
    directory: Path,
    manifest: EnsembleManifest,
    graph: bytes,
    weight_sets: Mapping[str, Tensors],
    statistics: Mapping[str, Tensors],
    approve: Callable[[StoredEnsemble], None] = lambda stored: None,
) -> StoredEnsemble:
    """Writes the ensemble to `directory`, replacing one that is there, and returns it as read back.

    manifest: complete but for the format version and the lists of files, which are filled in here.
    weight_sets, statistics: tensors by id.
    approve: looks at what a reader would get, and raises to stop before the directory gets its name.
    Raises InvalidEnsemble, with nothing changed, if the result would not load.
    """
    manifest = _copy(manifest)
    manifest.format_version = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
    directory = directory.absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.new-", dir=directory.parent))
    try:
        staging.chmod(0o755)  # mkdtemp's 0700 would shut out a server that runs as another user
        manifest.graph.CopyFrom(_write(staging, "graph.onnx", graph))
        for entries, folder, tensor_sets in (
            (manifest.weight_sets, "weights", weight_sets),
            (manifest.statistics, "statistics", statistics),
        ):
            del entries[:]
            for identifier, tensors in tensor_sets.items():
                data = safetensors.numpy.save(tensors)
                file = _write(staging, f"{folder}/{identifier}.safetensors", data)
                entries.append(TensorSet(id=identifier, file=file))
        _write(staging, MANIFEST, _to_json(manifest).encode())
        stored = validate(staging)
        approve(stored)
        _move(staging, directory)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return stored


def _copy(manifest: EnsembleManifest) -> EnsembleManifest:
    copy = EnsembleManifest()
    copy.CopyFrom(manifest)
    return copy


def _write(directory: Path, path: str, data: bytes) -> File:
    target = directory / path
    target.parent.mkdir(exist_ok=True)
    with target.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return File(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def _move(staging: Path, directory: Path) -> None:
    """A folder that holds something cannot be renamed over, so the old one first steps aside."""
    if not directory.exists():
        staging.rename(directory)
    else:
        aside = Path(tempfile.mkdtemp(prefix=f".{directory.name}.old-", dir=directory.parent))
        old = directory.rename(aside / directory.name)
        try:
            staging.rename(directory)
        except BaseException:
            old.rename(directory)
            aside.rmdir()
            raise
        shutil.rmtree(aside, ignore_errors=True)
    parent = os.open(directory.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself survives a power cut
    finally:
        os.close(parent)


def _to_json(manifest: EnsembleManifest) -> str:
    """Canonical protobuf JSON, zeros and empty strings written out: a person reads it, or a stranger's parser."""
    return json_format.MessageToJson(manifest, always_print_fields_with_no_presence=True) + "\n"
