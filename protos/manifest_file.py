"""Writes an ensemble directory: beside its final place, checked as a reader would, then renamed.

An interruption at any moment leaves a folder whose name begins with a dot and that nobody loads, never half
of an ensemble under its own name.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import safetensors.numpy
from google.protobuf import json_format

from protos import staging as staging_names
from protos.ensemble_pb2 import EnsembleManifest, File, TensorSet
from protos.stored_ensemble import Probe, StoredEnsemble, Tensors
from protos.validate import FORMAT_MAJOR, FORMAT_MINOR, MANIFEST, check, minor, validate


def write(
    directory: Path,
    manifest: EnsembleManifest,
    graph: bytes,
    weight_sets: Mapping[str, Tensors],
    statistics: Mapping[str, Tensors],
    approve: Callable[[StoredEnsemble], None] = lambda stored: None,
    probe: Probe | None = None,
) -> StoredEnsemble:
    """Writes the ensemble to `directory`, replacing one that is there, and returns it as read back.

    manifest: complete but for the format version and the lists of files and tensors, which are filled in here.
    weight_sets, statistics: tensors by id.
    approve: looks at what a reader would get, and raises to stop before the directory gets its name.
    Raises InvalidEnsemble if the result would not load, FileExistsError if something else than an ensemble is there;
    then nothing has changed.
    """
    manifest = _copy(manifest)
    manifest.format_version = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
    manifest.parameter_names[:] = next(iter(weight_sets.values()), {})
    manifest.statistic_names[:] = next(iter(statistics.values()), {})
    directory = directory.absolute()
    check_replaceable(directory)
    with staged(directory) as staging:
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
        manifest.ClearField("probe")
        if probe is not None:
            data = safetensors.numpy.save({"inputs": probe.inputs, "logits": probe.logits_MNC})
            manifest.probe.CopyFrom(_write(staging, "probe.safetensors", data))
        _write(staging, MANIFEST, _to_json(manifest).encode())
        stored = validate(staging)
        approve(stored)
        _move(staging, directory)
    return stored


@contextlib.contextmanager
def staged(directory: Path) -> Iterator[Path]:
    """A new folder beside `directory`, to be filled and renamed; removed again if that fails."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    staging = staging_names.name(directory, ".new-")
    staging.mkdir()
    try:
        with staging_names.held(staging):
            yield staging
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


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


def amend(directory: Path, change: Callable[[EnsembleManifest], None]) -> None:
    """Changes what the manifest of an ensemble says, and no other file. A signature of the old one is void then.

    Raises InvalidEnsemble for what is no ensemble, or would be none, ValueError for one of a newer format, of which
    fields would be lost; then nothing has changed.
    """
    manifest = validate(directory).manifest
    if minor(manifest) > FORMAT_MINOR:
        said = f"format version {manifest.format_version}; this program writes {FORMAT_MAJOR}.{FORMAT_MINOR}"
        raise ValueError(f"'{directory}' has {said}, and would lose what it does not know")
    change(manifest)
    manifest.format_version = f"{FORMAT_MAJOR}.{FORMAT_MINOR}"
    data = _to_json(manifest).encode()
    check(data)
    staging_names.replace_within(directory, MANIFEST, data)


def check_replaceable(directory: Path) -> None:
    """Raises FileExistsError if anything is there but an ensemble directory: its owner may want to keep it."""
    if os.path.lexists(directory) and (directory.is_symlink() or not (directory / MANIFEST).is_file()):
        raise FileExistsError(
            f"'{directory}' is there and is no ensemble directory; expected nothing, or one to replace"
        )


def _move(staging: Path, directory: Path) -> None:
    """Gives the directory its name; at every moment that name is the old ensemble or the new one."""
    if not directory.exists():
        staging.rename(directory)
    elif _exchange(staging, directory):
        shutil.rmtree(staging, ignore_errors=True)  # the old one now
    else:
        # Not every file system can exchange. A folder that holds something cannot be renamed over: it steps aside.
        aside = directory.with_name(f".{directory.name}.old-{secrets.token_hex(4)}")
        directory.rename(aside)
        try:
            staging.rename(directory)
        except BaseException:
            aside.rename(directory)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    parent = os.open(directory.parent, os.O_RDONLY)
    try:
        os.fsync(parent)  # the rename itself survives a power cut
    finally:
        os.close(parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swaps two names in one step (Linux's renameat2); False where that cannot be done."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    at_fdcwd, rename_exchange = -100, 2
    return bool(renameat2(at_fdcwd, os.fsencode(first), at_fdcwd, os.fsencode(second), rename_exchange) == 0)


def _to_json(manifest: EnsembleManifest) -> str:
    """Protobuf JSON, zeros and empty strings written out: a person reads it, or a stranger's parser."""
    document = json_format.MessageToDict(manifest, always_print_fields_with_no_presence=True)
    # The order of protobuf's maps changes from process to process; they are all in the provenance.
    if "provenance" in document:
        document["provenance"] = json.loads(json.dumps(document["provenance"], sort_keys=True))
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
