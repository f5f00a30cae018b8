"""The one door to an ensemble directory: reader and writer both call `validate`, and trust what it returns.

Nothing in a directory is trusted before: every file is opened without following links, read once, hashed, and
those very bytes are parsed. docs/manifest.md states the rules; each has its `Violation` here and its test.
"""

import errno
import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import safetensors
import safetensors.numpy
from google.protobuf import json_format

from protos.curve import CURVES, MAX_BENDS
from protos.ensemble_pb2 import CLASSIFICATION, NEXT_TOKEN, EnsembleManifest, File, Member, Metrics, TensorSet
from protos.graph import DATATYPES, Graph, TensorType
from protos.stored_ensemble import Probe, StoredEnsemble, Tensors

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"
FORMAT_MAJOR, FORMAT_MINOR = 1, 3
MAX_MANIFEST_BYTES = 64 * 2**20
READERS = 4  # files that are read, hashed and checked at once
COEFFICIENT_TOLERANCE = 1e-6

MAX_COEFFICIENT = 1e3
LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.001, 1000  # beyond, quotients of finite logits overflow
MAX_ROW_BYTES = 2**30
CONFORMAL_POLICIES = {"mean", "random", "curve", "cascade"}
NORMS = ("linf", "l2")  # of an attack

IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
IDENTIFIER_RULE = "1 to 128 letters, digits, '.', '_' or '-', a letter or digit first"


# The manifest's bytes, those of its signature.
IsTrusted: TypeAlias = Callable[[bytes, bytes], bool]


class Violation(StrEnum):
    """Each way in which a directory can be wrong."""

    NO_DIRECTORY = "no-directory"
    NO_MANIFEST = "no-manifest"
    MALFORMED_MANIFEST = "malformed-manifest"
    UNSIGNED = "unsigned"
    WRONG_SIGNATURE = "wrong-signature"
    UNKNOWN_MAJOR_VERSION = "unknown-major-version"
    BAD_NAME = "bad-name"
    BAD_TASK = "bad-task"
    BAD_LABELS = "bad-labels"
    DUPLICATE_ID = "duplicate-id"
    ZERO_MEMBERS = "zero-members"
    BAD_TEMPERATURE = "bad-temperature"
    BAD_METRIC = "bad-metric"
    BAD_CASCADE = "bad-cascade"
    BAD_CONFORMAL = "bad-conformal"
    BAD_ROBUSTNESS = "bad-robustness"
    UNKNOWN_REFERENCE = "unknown-reference"
    BAD_COEFFICIENTS = "bad-coefficients"
    ABSOLUTE_PATH = "absolute-path"
    ESCAPING_PATH = "escaping-path"
    BAD_PATH = "bad-path"
    DUPLICATE_PATH = "duplicate-path"
    SYMLINK = "symlink"
    HARD_LINK = "hard-link"
    MISSING_FILE = "missing-file"
    UNREADABLE = "unreadable"
    EXTRA_FILE = "extra-file"
    WRONG_SIZE = "wrong-size"
    WRONG_HASH = "wrong-hash"
    MALFORMED_GRAPH = "malformed-graph"
    WRONG_INPUT = "wrong-input"
    WRONG_OUTPUT = "wrong-output"
    MALFORMED_TENSORS = "malformed-tensors"
    WRONG_TENSOR_NAMES = "wrong-tensor-names"
    WRONG_SHAPE = "wrong-shape"
    WRONG_DTYPE = "wrong-dtype"
    NON_FINITE = "non-finite"


class InvalidEnsemble(ValueError):
    """A directory that is no ensemble. `violation` is for programs; the message says what was found and expected."""

    def __init__(self, violation: Violation, message: str) -> None:
        super().__init__(f"{violation}: {message}")
        self.violation = violation


def validate(directory: Path, is_trusted: IsTrusted | None = None) -> StoredEnsemble:
    """Reads an ensemble directory and checks all of it. Raises InvalidEnsemble; then nothing of it was used.

    is_trusted: whether these bytes of a manifest have this signature, by a key that the caller trusts; asked before
    anything of the manifest is read. None: who signed it does not matter.
    """
    if not directory.is_dir():
        raise InvalidEnsemble(Violation.NO_DIRECTORY, f"'{directory}' is not a directory")
    data = read_manifest(directory)
    if is_trusted is not None:
        _check_signature(directory, data, is_trusted)
    manifest = check(data)
    files = [manifest.graph, *(entry.file for entry in (*manifest.weight_sets, *manifest.statistics))]
    if manifest.HasField("probe"):
        files.append(manifest.probe)
    _check_paths(files)
    _check_listing(directory, {file.path for file in files}, minor(manifest) > FORMAT_MINOR)

    graph = _check_graph(_read(directory, manifest.graph), manifest)
    parameters, names = set(manifest.parameter_names), set(manifest.statistic_names)
    read_parameters, read_statistics = (partial(_tensors, directory, graph, wanted) for wanted in (parameters, names))
    with ThreadPoolExecutor(READERS) as readers:
        weight_sets = list(readers.map(read_parameters, manifest.weight_sets))
        statistics = list(readers.map(read_statistics, manifest.statistics))
    probe = _probe(directory, manifest, graph) if manifest.HasField("probe") else None
    return StoredEnsemble(
        manifest,
        graph,
        {entry.id: tensors for entry, tensors in zip(manifest.weight_sets, weight_sets, strict=True)},
        {entry.id: tensors for entry, tensors in zip(manifest.statistics, statistics, strict=True)},
        probe,
        hashlib.sha256(data).hexdigest(),
    )


def check(data: bytes) -> EnsembleManifest:
    """A manifest by itself, without the files that it names. Raises InvalidEnsemble."""
    manifest = _parse(data)
    _check_manifest(manifest)
    return manifest


def read_manifest(directory: Path) -> bytes:
    """The manifest's bytes, as `validate` would read and then check them. Raises InvalidEnsemble."""
    return _read_bytes(directory, MANIFEST)


def _check_signature(directory: Path, manifest: bytes, is_trusted: IsTrusted) -> None:
    if not os.path.lexists(directory / SIGNATURE):
        raise InvalidEnsemble(Violation.UNSIGNED, f"'{directory}' holds no {SIGNATURE}; expected one by a trusted key")
    if not is_trusted(manifest, _read_bytes(directory, SIGNATURE)):
        message = f"{SIGNATURE} in '{directory}' is not a signature of {MANIFEST} by a trusted key"
        raise InvalidEnsemble(Violation.WRONG_SIGNATURE, message)


def _parse(data: bytes) -> EnsembleManifest:
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidEnsemble(Violation.MALFORMED_MANIFEST, f"{MANIFEST} is not JSON: {error}") from None
    if not isinstance(document, dict):
        kind = type(document).__name__
        raise InvalidEnsemble(Violation.MALFORMED_MANIFEST, f"{MANIFEST} holds a {kind}; expected an object")

    # The version comes first: what another major calls its fields is not ours to judge.
    version = document.get("formatVersion")
    parts = re.fullmatch(r"(\d{1,9})\.(\d{1,9})", version) if isinstance(version, str) else None
    if parts is None:
        message = f"formatVersion is {version!r}; expected 'MAJOR.MINOR'"
        raise InvalidEnsemble(Violation.MALFORMED_MANIFEST, message)
    major, minor = int(parts[1]), int(parts[2])
    if major != FORMAT_MAJOR:
        message = f"the manifest has format version {version}; this program reads {FORMAT_MAJOR}.x"
        raise InvalidEnsemble(Violation.UNKNOWN_MAJOR_VERSION, message)
    try:
        return json_format.ParseDict(document, EnsembleManifest(), ignore_unknown_fields=minor > FORMAT_MINOR)
    except (json_format.ParseError, RecursionError, OverflowError) as error:
        raise InvalidEnsemble(Violation.MALFORMED_MANIFEST, f"{MANIFEST}: {error}") from None


def minor(manifest: EnsembleManifest) -> int:
    """Of its format version."""
    return int(manifest.format_version.partition(".")[2])


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a repeated key parsers keep the first or the last; ours and another's must not read two ensembles."""
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("a key is repeated")
    return document


def _check_manifest(manifest: EnsembleManifest) -> None:
    """Everything that can be said without opening another file."""
    for field in ("name", "version"):
        _check_identifier(getattr(manifest, field), field)
    if manifest.task not in (CLASSIFICATION, NEXT_TOKEN):
        message = f"task is {manifest.task}; this program knows CLASSIFICATION and NEXT_TOKEN"
        raise InvalidEnsemble(Violation.BAD_TASK, message)
    if len(manifest.class_labels) < 2:
        count = len(manifest.class_labels)
        raise InvalidEnsemble(Violation.BAD_LABELS, f"there are {count} class labels; expected one a class, 2 or more")
    for label in manifest.class_labels:
        if not label.isprintable() or not label:
            raise InvalidEnsemble(Violation.BAD_LABELS, f"a class label is {label!r}; expected printable text")
    _check_unique(manifest.class_labels, "class label", Violation.BAD_LABELS)
    if manifest.input.datatype not in DATATYPES:
        message = f"the input's datatype is '{manifest.input.datatype}'; expected one of {', '.join(DATATYPES)}"
        raise InvalidEnsemble(Violation.WRONG_INPUT, message)
    row_bytes = math.prod(manifest.input.shape) * DATATYPES[manifest.input.datatype].itemsize
    if min(manifest.input.shape, default=1) < 1 or row_bytes > MAX_ROW_BYTES:
        shape = list(manifest.input.shape)
        message = f"the input's shape is {shape}; expected axes of 1 or more, and a row of 1 GiB at most"
        raise InvalidEnsemble(Violation.WRONG_INPUT, message)
    if manifest.task == NEXT_TOKEN:
        is_tokens = DATATYPES[manifest.input.datatype].kind in "iu" and len(manifest.input.shape) == 1
        if not is_tokens:
            message = (
                f"the input is {manifest.input.datatype} {list(manifest.input.shape)}; NEXT_TOKEN takes integers [L]"
            )
            raise InvalidEnsemble(Violation.WRONG_INPUT, message)

    if not manifest.members:
        raise InvalidEnsemble(Violation.ZERO_MEMBERS, "the manifest has no members; expected at least one")
    names = [*manifest.parameter_names, *manifest.statistic_names]
    _check_unique(names, "tensor", Violation.WRONG_TENSOR_NAMES)
    if not manifest.parameter_names or bool(manifest.statistic_names) != bool(manifest.statistics):
        message = (
            f"the manifest lists {len(manifest.parameter_names)} parameters, and {len(manifest.statistic_names)} "
            f"tensors for {len(manifest.statistics)} statistics; expected parameters, and tensors for statistics"
        )
        raise InvalidEnsemble(Violation.WRONG_TENSOR_NAMES, message)
    for kind, entries in (
        ("weight set", manifest.weight_sets),
        ("statistics", manifest.statistics),
        ("member", manifest.members),
    ):
        ids = [entry.id for entry in entries]
        for identifier in ids:
            _check_identifier(identifier, f"the id of a {kind}")
        _check_unique(ids, kind, Violation.DUPLICATE_ID)

    _check_temperature(manifest.temperature, "the ensemble")
    _check_metrics(manifest.metrics, "the ensemble")
    weight_sets = {entry.id for entry in manifest.weight_sets}
    statistics = {entry.id for entry in manifest.statistics}
    for member in manifest.members:
        _check_temperature(member.temperature, f"member '{member.id}'")
        _check_metrics(member.metrics, f"member '{member.id}'")
        _check_terms(member, weight_sets)
        if member.statistics and member.statistics not in statistics:
            message = f"member '{member.id}' uses statistics '{member.statistics}', which the manifest does not list"
            raise InvalidEnsemble(Violation.UNKNOWN_REFERENCE, message)
        if statistics and not member.statistics:
            message = f"member '{member.id}' names no statistics, but the network has some"
            raise InvalidEnsemble(Violation.UNKNOWN_REFERENCE, message)

    if manifest.HasField("cascade"):
        _check_cascade(manifest)
    _check_conformal(manifest)
    _check_robustness(manifest)


def _check_cascade(manifest: EnsembleManifest) -> None:
    cascade, members = manifest.cascade, [member.id for member in manifest.members]
    stages = [stage.member for stage in cascade.stages]
    if sorted(stages) != sorted(members):
        message = f"the cascade runs {len(stages)} members; expected each of the {len(members)} once"
        raise InvalidEnsemble(Violation.BAD_CASCADE, message)
    if not 0.0 <= cascade.accuracy_loss < 1.0 or not 1.0 <= cascade.members_run <= len(members):
        message = (
            f"the cascade says accuracy loss {cascade.accuracy_loss} with {cascade.members_run} members run; "
            f"expected a share below 1, and 1 to {len(members)}"
        )
        raise InvalidEnsemble(Violation.BAD_CASCADE, message)
    for stage in cascade.stages:
        _check_temperature(stage.temperature, f"the cascade at '{stage.member}'")
        if not 0.0 <= stage.threshold <= 1.0:
            message = f"the cascade's threshold at '{stage.member}' is {stage.threshold}; expected 0 to 1"
            raise InvalidEnsemble(Violation.BAD_CASCADE, message)
    first, last = cascade.stages[0], cascade.stages[-1]
    if first.temperature != 1.0 or last.threshold != 0.0:
        message = (
            f"the cascade begins with temperature {first.temperature} and ends with threshold {last.threshold}; "
            f"expected 1 and 0: one member has its own temperature, and all of them answer"
        )
        raise InvalidEnsemble(Violation.BAD_CASCADE, message)


def _check_conformal(manifest: EnsembleManifest) -> None:
    policies = [entry.policy for entry in manifest.conformal]
    on_curve = any(member.HasField("curve_point") for member in manifest.members)
    needs = {"cascade": manifest.HasField("cascade"), "curve": on_curve}
    known = {policy for policy in CONFORMAL_POLICIES if needs.get(policy, True)}
    if len(set(policies)) != len(policies) or set(policies) - known:
        message = f"there are conformal thresholds for {policies}; expected some of {sorted(known)}, each once"
        raise InvalidEnsemble(Violation.BAD_CONFORMAL, message)
    for entry in manifest.conformal:
        levels = [threshold.level for threshold in entry.thresholds]
        if not levels or not all(a < b for a, b in pairwise([0.0, *levels, 1.0])):
            message = f"the conformal levels of '{entry.policy}' are {levels}; expected them to ascend between 0 and 1"
            raise InvalidEnsemble(Violation.BAD_CONFORMAL, message)
        thresholds = [threshold.threshold for threshold in entry.thresholds]
        if not all(a <= b for a, b in pairwise([0.0, *thresholds, 1.0])):
            message = f"the conformal thresholds of '{entry.policy}' are {thresholds}; expected none to fall, 0 to 1"
            raise InvalidEnsemble(Violation.BAD_CONFORMAL, message)


def _check_robustness(manifest: EnsembleManifest) -> None:
    for entry in manifest.robustness:
        shares = (entry.all_members_accuracy, entry.expected_accuracy, entry.mean_accuracy)
        if not all(0.0 <= share <= 1.0 for share in shares) or not shares[0] <= shares[1] + 1e-9:
            message = (
                f"accuracies under '{entry.attack}' are {list(shares)} (all members, expected, of the mean); "
                f"expected 0 to 1, and of all members no more than the expected one"
            )
            raise InvalidEnsemble(Violation.BAD_ROBUSTNESS, message)
        is_length = math.isfinite(entry.epsilon) and entry.epsilon >= 0.0
        if not entry.attack or entry.norm not in NORMS or not is_length or not entry.rows:
            message = (
                f"an attack is '{entry.attack}' in norm '{entry.norm}' of {entry.epsilon} on {entry.rows} rows; "
                f"expected a name, {' or '.join(NORMS)}, 0 or more, 1 or more"
            )
            raise InvalidEnsemble(Violation.BAD_ROBUSTNESS, message)


def _check_terms(member: Member, weight_sets: set[str]) -> None:
    for term in member.terms:
        if term.weight_set not in weight_sets:
            message = f"member '{member.id}' uses weight set '{term.weight_set}', which the manifest does not list"
            raise InvalidEnsemble(Violation.UNKNOWN_REFERENCE, message)
    if len({term.weight_set for term in member.terms}) != len(member.terms):
        message = f"member '{member.id}' names a weight set twice; expected one term a weight set"
        raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)
    coefficients = [term.coefficient for term in member.terms]
    if not all(abs(coefficient) <= MAX_COEFFICIENT for coefficient in coefficients):
        message = f"member '{member.id}' has coefficients {coefficients}; expected {MAX_COEFFICIENT:g} in size at most"
        raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)
    total = math.fsum(coefficients)
    if not abs(total - 1.0) <= COEFFICIENT_TOLERANCE:
        message = f"the coefficients of member '{member.id}' sum to {total}; expected 1"
        raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)

    if member.HasField("curve_point"):
        point = member.curve_point
        if point.curve not in CURVES:
            raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, f"member '{member.id}' lies on a curve of unknown kind")
        if not 0.0 <= point.t <= 1.0:
            raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, f"member '{member.id}' has t = {point.t}, not in [0, 1]")
        # Compared before they are computed: `bends` is a number from a file, and could ask for any amount of work.
        if len(coefficients) != point.bends + 2:
            message = (
                f"member '{member.id}' has {len(coefficients)} coefficients; "
                f"a curve of {point.bends} bends has {point.bends + 2} control points"
            )
            raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)
        if point.bends > MAX_BENDS:
            message = f"member '{member.id}' lies on a curve of {point.bends} bends; expected {MAX_BENDS} at most"
            raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)
        expected = CURVES[point.curve](point.bends, point.t)
        if max(abs(a - b) for a, b in zip(coefficients, expected, strict=True)) > COEFFICIENT_TOLERANCE:
            message = f"member '{member.id}' has coefficients {coefficients}; its curve at t = {point.t} has {expected}"
            raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)
    elif member.WhichOneof("origin") is not None and coefficients != [1.0]:
        origin = member.WhichOneof("origin")
        message = f"member '{member.id}' is an {origin} with coefficients {coefficients}; expected a single 1"
        raise InvalidEnsemble(Violation.BAD_COEFFICIENTS, message)


def _check_temperature(temperature: float, owner: str) -> None:
    if not LEAST_TEMPERATURE <= temperature <= GREATEST_TEMPERATURE:
        message = f"the temperature of {owner} is {temperature}; expected {LEAST_TEMPERATURE} to {GREATEST_TEMPERATURE}"
        raise InvalidEnsemble(Violation.BAD_TEMPERATURE, message)


def _check_metrics(metrics: Iterable[Metrics], owner: str) -> None:
    for entry in metrics:
        for field in ("error", "nll", "brier", "ece"):
            if not (math.isfinite(value := getattr(entry, field)) and value >= 0.0):
                message = f"{field} of {owner} on '{entry.split}' is {value}; expected a finite number, 0 or more"
                raise InvalidEnsemble(Violation.BAD_METRIC, message)


def _check_identifier(value: str, what: str) -> None:
    if not IDENTIFIER.fullmatch(value):
        raise InvalidEnsemble(Violation.BAD_NAME, f"{what} is {value!r}; expected {IDENTIFIER_RULE}")


def _check_unique(values: Sequence[str], what: str, violation: Violation) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise InvalidEnsemble(violation, f"{what} {value!r} is listed twice")
        seen.add(value)


def _check_paths(files: Iterable[File]) -> None:
    paths = [file.path for file in files]
    for path in paths:
        parts = path.split("/")
        if path.startswith("/"):
            raise InvalidEnsemble(Violation.ABSOLUTE_PATH, f"{path!r} is absolute; expected a path in the directory")
        if ".." in parts:
            raise InvalidEnsemble(Violation.ESCAPING_PATH, f"{path!r} contains '..'; expected a path in the directory")
        if not all(IDENTIFIER.fullmatch(part) for part in parts) or path in (MANIFEST, SIGNATURE):
            message = f"{path!r}: expected parts of letters, digits, '.', '_' or '-', separated by '/'"
            raise InvalidEnsemble(Violation.BAD_PATH, message)
    _check_unique(paths, "file", Violation.DUPLICATE_PATH)


def _check_listing(directory: Path, listed: set[str], may_hold_more: bool) -> None:
    """Exactly the listed files, the manifest, and no links anywhere.

    may_hold_more: a newer minor version may list files in fields that we do not know. They are never opened.
    """
    found = set()
    names_here: Counter[tuple[int, int]] = Counter()
    statuses: dict[str, os.stat_result] = {}

    def unreadable(error: OSError) -> None:
        relative = Path(error.filename).relative_to(directory).as_posix()
        raise InvalidEnsemble(Violation.UNREADABLE, f"'{relative}' cannot be read: {error.strerror}") from error

    for root, folders, names in os.walk(directory, onerror=unreadable):
        for name in (*folders, *names):
            path = Path(root, name)
            relative = path.relative_to(directory).as_posix()
            if path.is_symlink():
                raise InvalidEnsemble(Violation.SYMLINK, f"'{relative}' is a symbolic link; expected plain files only")
            if name in names:
                found.add(relative)
                statuses[relative] = status = path.lstat()
                names_here[status.st_dev, status.st_ino] += 1
    for relative, status in statuses.items():
        if status.st_nlink > names_here[status.st_dev, status.st_ino]:
            message = f"'{relative}' has another name outside of the directory; expected a copy, not a hard link"
            raise InvalidEnsemble(Violation.HARD_LINK, message)
    if missing := sorted(listed - found):
        raise InvalidEnsemble(Violation.MISSING_FILE, f"'{missing[0]}' is in the manifest but not in the directory")
    if (extra := sorted(found - listed - {MANIFEST, SIGNATURE})) and not may_hold_more:
        raise InvalidEnsemble(Violation.EXTRA_FILE, f"'{extra[0]}' is in the directory but not in the manifest")


def _read(directory: Path, file: File) -> bytes:
    """The file's verified bytes: what is hashed is what is returned, so a later change on disk changes nothing."""
    data = _read_bytes(directory, file.path, expected_bytes=file.size_bytes)
    if (digest := hashlib.sha256(data).hexdigest()) != file.sha256:
        message = f"'{file.path}' has SHA-256 {digest}; the manifest says {file.sha256}"
        raise InvalidEnsemble(Violation.WRONG_HASH, message)
    return data


def _read_bytes(directory: Path, path: str, expected_bytes: int | None = None) -> bytes:
    """A plain file's bytes; the size is compared before anything is read. None: the manifest, up to its limit."""
    try:
        descriptor = os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if (directory / path).is_symlink():
            raise InvalidEnsemble(Violation.SYMLINK, f"'{path}' is a symbolic link; expected a plain file") from error
        if error.errno == errno.ENXIO:  # a socket
            raise InvalidEnsemble(Violation.BAD_PATH, f"'{path}' is not a plain file") from error
        if error.errno == errno.ENOENT:
            violation = Violation.NO_MANIFEST if path == MANIFEST else Violation.MISSING_FILE
            raise InvalidEnsemble(violation, f"'{directory}' holds no {path}") from error
        raise InvalidEnsemble(Violation.UNREADABLE, f"'{path}' cannot be read: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise InvalidEnsemble(Violation.BAD_PATH, f"'{path}' is not a plain file")
    with os.fdopen(descriptor, "rb") as file:
        if expected_bytes is None and status.st_size > MAX_MANIFEST_BYTES:
            message = f"'{path}' has {status.st_size} bytes; expected {MAX_MANIFEST_BYTES} at most"
            raise InvalidEnsemble(Violation.WRONG_SIZE, message)
        if expected_bytes is not None and status.st_size != expected_bytes:
            message = f"'{path}' has {status.st_size} bytes; the manifest says {expected_bytes}"
            raise InvalidEnsemble(Violation.WRONG_SIZE, message)
        return file.read(status.st_size)


def _check_graph(data: bytes, manifest: EnsembleManifest) -> Graph:
    try:
        graph = Graph(data)
    except ValueError as error:
        raise InvalidEnsemble(Violation.MALFORMED_GRAPH, f"'{manifest.graph.path}': {error}") from None
    expected = (DATATYPES[manifest.input.datatype], (-1, *manifest.input.shape))
    found = graph.inputs.get(manifest.input.name)
    if len(graph.inputs) != 1 or found is None or (found.dtype, found.shape) != expected:
        message = (
            f"the graph takes {_describe(graph.inputs)}; the manifest says "
            f"'{manifest.input.name}' {expected[0]} {list(expected[1])}"
        )
        raise InvalidEnsemble(Violation.WRONG_INPUT, message)
    positions = manifest.input.shape if manifest.task == NEXT_TOKEN else []
    logits_shape = (-1, *positions, len(manifest.class_labels))
    output = graph.outputs.get("logits")
    for node in graph.model.graph.node:
        if node.op_type == "BatchNormalization" and not {*node.input[3:5]} <= {*manifest.statistic_names}:
            missing = sorted({*node.input[3:5]} - {*manifest.statistic_names})[0]
            message = f"BatchNorm reads '{missing}', which the manifest does not list among the statistics"
            raise InvalidEnsemble(Violation.WRONG_TENSOR_NAMES, message)
    if len(graph.outputs) != 1 or output is None or output.dtype != np.float32 or output.shape != logits_shape:
        message = f"the graph gives {_describe(graph.outputs)}; expected 'logits' float32 {list(logits_shape)}"
        raise InvalidEnsemble(Violation.WRONG_OUTPUT, message)
    return graph


def _describe(tensors: dict[str, TensorType]) -> str:
    return ", ".join(f"'{name}' {tensor}" for name, tensor in tensors.items()) or "nothing"


def _tensors(directory: Path, graph: Graph, names: Set[str], entry: TensorSet) -> Tensors:
    path = entry.file.path
    tensors = _read_tensors(directory, entry.file, names, f"the manifest lists {len(names)} tensors for it")
    for name, tensor in tensors.items():
        expected = graph.tensor_type(name)
        if expected is None:
            raise InvalidEnsemble(Violation.WRONG_TENSOR_NAMES, f"'{path}' holds '{name}', which the graph does not")
        if tensor.shape != expected.shape:
            message = f"'{name}' in '{path}' is {list(tensor.shape)}; the graph says {list(expected.shape)}"
            raise InvalidEnsemble(Violation.WRONG_SHAPE, message)
        if tensor.dtype.kind != "f":
            message = f"'{name}' in '{path}' is {tensor.dtype}; expected a floating-point type"
            raise InvalidEnsemble(Violation.WRONG_DTYPE, message)
        if tensor.dtype != expected.dtype:
            message = f"'{name}' in '{path}' is {tensor.dtype}; the graph says {expected.dtype}"
            raise InvalidEnsemble(Violation.WRONG_DTYPE, message)
        if not np.isfinite(tensor).all():
            raise InvalidEnsemble(Violation.NON_FINITE, f"'{name}' in '{path}' holds a value that is not finite")
    return tensors


def _read_tensors(directory: Path, file: File, names: Set[str], expected: str) -> Tensors:
    try:
        tensors: Tensors = safetensors.numpy.load(_read(directory, file))
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, InvalidEnsemble):
            raise
        raise InvalidEnsemble(
            Violation.MALFORMED_TENSORS, f"'{file.path}' is not a safetensors file: {error}"
        ) from None
    if odd := sorted(tensors.keys() ^ names):
        where = "holds" if odd[0] in tensors else "lacks"
        raise InvalidEnsemble(Violation.WRONG_TENSOR_NAMES, f"'{file.path}' {where} '{odd[0]}'; {expected}")
    return tensors


def _probe(directory: Path, manifest: EnsembleManifest, graph: Graph) -> Probe:
    path = manifest.probe.path
    tensors = _read_tensors(directory, manifest.probe, {"inputs", "logits"}, "a probe is 'inputs' and 'logits'")
    rows = tensors["inputs"].shape[0] if tensors["inputs"].ndim else 0
    (taken,), given = graph.inputs.values(), graph.outputs["logits"]
    for name, dtype, shape in (
        ("inputs", taken.dtype, (rows, *taken.shape[1:])),
        ("logits", given.dtype, (len(manifest.members), rows, *given.shape[1:])),
    ):
        tensor = tensors[name]
        if tensor.dtype != dtype:
            message = f"'{name}' in '{path}' is {tensor.dtype}; the graph says {dtype}"
            raise InvalidEnsemble(Violation.WRONG_DTYPE, message)
        if tensor.shape != shape or rows == 0:
            message = f"'{name}' in '{path}' is {list(tensor.shape)}; expected {list(shape)}, of one row or more"
            raise InvalidEnsemble(Violation.WRONG_SHAPE, message)
        if not np.isfinite(tensor).all():
            raise InvalidEnsemble(Violation.NON_FINITE, f"'{name}' in '{path}' holds a value that is not finite")
    return Probe(tensors["inputs"], tensors["logits"].astype(np.float32, copy=False))
