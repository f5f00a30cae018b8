import datetime

from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Task(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TASK_UNSPECIFIED: _ClassVar[Task]
    CLASSIFICATION: _ClassVar[Task]
    NEXT_TOKEN: _ClassVar[Task]

class Curve(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CURVE_UNSPECIFIED: _ClassVar[Curve]
    BEZIER: _ClassVar[Curve]
    POLYGONAL_CHAIN: _ClassVar[Curve]
TASK_UNSPECIFIED: Task
CLASSIFICATION: Task
NEXT_TOKEN: Task
CURVE_UNSPECIFIED: Curve
BEZIER: Curve
POLYGONAL_CHAIN: Curve

class EnsembleManifest(_message.Message):
    __slots__ = ("format_version", "name", "version", "created", "task", "input", "class_labels", "graph", "weight_sets", "statistics", "members", "temperature", "metrics", "provenance", "parameter_names", "statistic_names", "probe", "cascade", "conformal", "robustness")
    FORMAT_VERSION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    CLASS_LABELS_FIELD_NUMBER: _ClassVar[int]
    GRAPH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_SETS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    PROVENANCE_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_NAMES_FIELD_NUMBER: _ClassVar[int]
    STATISTIC_NAMES_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    CASCADE_FIELD_NUMBER: _ClassVar[int]
    CONFORMAL_FIELD_NUMBER: _ClassVar[int]
    ROBUSTNESS_FIELD_NUMBER: _ClassVar[int]
    format_version: str
    name: str
    version: str
    created: _timestamp_pb2.Timestamp
    task: Task
    input: Input
    class_labels: _containers.RepeatedScalarFieldContainer[str]
    graph: File
    weight_sets: _containers.RepeatedCompositeFieldContainer[TensorSet]
    statistics: _containers.RepeatedCompositeFieldContainer[TensorSet]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    temperature: float
    metrics: _containers.RepeatedCompositeFieldContainer[Metrics]
    provenance: Provenance
    parameter_names: _containers.RepeatedScalarFieldContainer[str]
    statistic_names: _containers.RepeatedScalarFieldContainer[str]
    probe: File
    cascade: Cascade
    conformal: _containers.RepeatedCompositeFieldContainer[Conformal]
    robustness: _containers.RepeatedCompositeFieldContainer[Robustness]
    def __init__(self, format_version: _Optional[str] = ..., name: _Optional[str] = ..., version: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., task: _Optional[_Union[Task, str]] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., class_labels: _Optional[_Iterable[str]] = ..., graph: _Optional[_Union[File, _Mapping]] = ..., weight_sets: _Optional[_Iterable[_Union[TensorSet, _Mapping]]] = ..., statistics: _Optional[_Iterable[_Union[TensorSet, _Mapping]]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., temperature: _Optional[float] = ..., metrics: _Optional[_Iterable[_Union[Metrics, _Mapping]]] = ..., provenance: _Optional[_Union[Provenance, _Mapping]] = ..., parameter_names: _Optional[_Iterable[str]] = ..., statistic_names: _Optional[_Iterable[str]] = ..., probe: _Optional[_Union[File, _Mapping]] = ..., cascade: _Optional[_Union[Cascade, _Mapping]] = ..., conformal: _Optional[_Iterable[_Union[Conformal, _Mapping]]] = ..., robustness: _Optional[_Iterable[_Union[Robustness, _Mapping]]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class File(_message.Message):
    __slots__ = ("path", "size_bytes", "sha256")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    path: str
    size_bytes: int
    sha256: str
    def __init__(self, path: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class TensorSet(_message.Message):
    __slots__ = ("id", "file")
    ID_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    id: str
    file: File
    def __init__(self, id: _Optional[str] = ..., file: _Optional[_Union[File, _Mapping]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("id", "endpoint", "fge_snapshot", "curve_point", "sse_snapshot", "weight_average", "gaussian_sample", "terms", "statistics", "temperature", "metrics")
    ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    FGE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    CURVE_POINT_FIELD_NUMBER: _ClassVar[int]
    SSE_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_AVERAGE_FIELD_NUMBER: _ClassVar[int]
    GAUSSIAN_SAMPLE_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    id: str
    endpoint: Endpoint
    fge_snapshot: FgeSnapshot
    curve_point: CurvePoint
    sse_snapshot: SseSnapshot
    weight_average: WeightAverage
    gaussian_sample: GaussianSample
    terms: _containers.RepeatedCompositeFieldContainer[Term]
    statistics: str
    temperature: float
    metrics: _containers.RepeatedCompositeFieldContainer[Metrics]
    def __init__(self, id: _Optional[str] = ..., endpoint: _Optional[_Union[Endpoint, _Mapping]] = ..., fge_snapshot: _Optional[_Union[FgeSnapshot, _Mapping]] = ..., curve_point: _Optional[_Union[CurvePoint, _Mapping]] = ..., sse_snapshot: _Optional[_Union[SseSnapshot, _Mapping]] = ..., weight_average: _Optional[_Union[WeightAverage, _Mapping]] = ..., gaussian_sample: _Optional[_Union[GaussianSample, _Mapping]] = ..., terms: _Optional[_Iterable[_Union[Term, _Mapping]]] = ..., statistics: _Optional[str] = ..., temperature: _Optional[float] = ..., metrics: _Optional[_Iterable[_Union[Metrics, _Mapping]]] = ...) -> None: ...

class Term(_message.Message):
    __slots__ = ("weight_set", "coefficient")
    WEIGHT_SET_FIELD_NUMBER: _ClassVar[int]
    COEFFICIENT_FIELD_NUMBER: _ClassVar[int]
    weight_set: str
    coefficient: float
    def __init__(self, weight_set: _Optional[str] = ..., coefficient: _Optional[float] = ...) -> None: ...

class Cascade(_message.Message):
    __slots__ = ("stages", "accuracy_loss", "members_run")
    STAGES_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_LOSS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_RUN_FIELD_NUMBER: _ClassVar[int]
    stages: _containers.RepeatedCompositeFieldContainer[CascadeStage]
    accuracy_loss: float
    members_run: float
    def __init__(self, stages: _Optional[_Iterable[_Union[CascadeStage, _Mapping]]] = ..., accuracy_loss: _Optional[float] = ..., members_run: _Optional[float] = ...) -> None: ...

class CascadeStage(_message.Message):
    __slots__ = ("member", "temperature", "threshold")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    member: str
    temperature: float
    threshold: float
    def __init__(self, member: _Optional[str] = ..., temperature: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class Conformal(_message.Message):
    __slots__ = ("policy", "rows", "thresholds")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    policy: str
    rows: int
    thresholds: _containers.RepeatedCompositeFieldContainer[ConformalThreshold]
    def __init__(self, policy: _Optional[str] = ..., rows: _Optional[int] = ..., thresholds: _Optional[_Iterable[_Union[ConformalThreshold, _Mapping]]] = ...) -> None: ...

class ConformalThreshold(_message.Message):
    __slots__ = ("level", "threshold")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    level: float
    threshold: float
    def __init__(self, level: _Optional[float] = ..., threshold: _Optional[float] = ...) -> None: ...

class Endpoint(_message.Message):
    __slots__ = ("run", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: int
    epoch: int
    def __init__(self, run: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class FgeSnapshot(_message.Message):
    __slots__ = ("run", "cycle", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: int
    cycle: int
    epoch: float
    def __init__(self, run: _Optional[int] = ..., cycle: _Optional[int] = ..., epoch: _Optional[float] = ...) -> None: ...

class SseSnapshot(_message.Message):
    __slots__ = ("run", "cycle", "epoch")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CYCLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    run: int
    cycle: int
    epoch: float
    def __init__(self, run: _Optional[int] = ..., cycle: _Optional[int] = ..., epoch: _Optional[float] = ...) -> None: ...

class WeightAverage(_message.Message):
    __slots__ = ("run", "snapshots")
    RUN_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    run: int
    snapshots: int
    def __init__(self, run: _Optional[int] = ..., snapshots: _Optional[int] = ...) -> None: ...

class GaussianSample(_message.Message):
    __slots__ = ("run", "draw")
    RUN_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    run: int
    draw: int
    def __init__(self, run: _Optional[int] = ..., draw: _Optional[int] = ...) -> None: ...

class CurvePoint(_message.Message):
    __slots__ = ("curve", "bends", "t")
    CURVE_FIELD_NUMBER: _ClassVar[int]
    BENDS_FIELD_NUMBER: _ClassVar[int]
    T_FIELD_NUMBER: _ClassVar[int]
    curve: Curve
    bends: int
    t: float
    def __init__(self, curve: _Optional[_Union[Curve, str]] = ..., bends: _Optional[int] = ..., t: _Optional[float] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("predictor", "split", "rows", "error", "nll", "brier", "ece", "ece_bins")
    PREDICTOR_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NLL_FIELD_NUMBER: _ClassVar[int]
    BRIER_FIELD_NUMBER: _ClassVar[int]
    ECE_FIELD_NUMBER: _ClassVar[int]
    ECE_BINS_FIELD_NUMBER: _ClassVar[int]
    predictor: str
    split: str
    rows: int
    error: float
    nll: float
    brier: float
    ece: float
    ece_bins: int
    def __init__(self, predictor: _Optional[str] = ..., split: _Optional[str] = ..., rows: _Optional[int] = ..., error: _Optional[float] = ..., nll: _Optional[float] = ..., brier: _Optional[float] = ..., ece: _Optional[float] = ..., ece_bins: _Optional[int] = ...) -> None: ...

class Robustness(_message.Message):
    __slots__ = ("attack", "norm", "epsilon", "rows", "expected_accuracy", "mean_accuracy", "all_members_accuracy")
    ATTACK_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ALL_MEMBERS_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    attack: str
    norm: str
    epsilon: float
    rows: int
    expected_accuracy: float
    mean_accuracy: float
    all_members_accuracy: float
    def __init__(self, attack: _Optional[str] = ..., norm: _Optional[str] = ..., epsilon: _Optional[float] = ..., rows: _Optional[int] = ..., expected_accuracy: _Optional[float] = ..., mean_accuracy: _Optional[float] = ..., all_members_accuracy: _Optional[float] = ...) -> None: ...

class Provenance(_message.Message):
    __slots__ = ("config", "seeds", "library_versions", "dataset", "git_commit")
    class LibraryVersionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    LIBRARY_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    GIT_COMMIT_FIELD_NUMBER: _ClassVar[int]
    config: _struct_pb2.Struct
    seeds: _containers.RepeatedScalarFieldContainer[int]
    library_versions: _containers.ScalarMap[str, str]
    dataset: Dataset
    git_commit: str
    def __init__(self, config: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., seeds: _Optional[_Iterable[int]] = ..., library_versions: _Optional[_Mapping[str, str]] = ..., dataset: _Optional[_Union[Dataset, _Mapping]] = ..., git_commit: _Optional[str] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "sha256", "rows")
    class RowsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    sha256: str
    rows: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., sha256: _Optional[str] = ..., rows: _Optional[_Mapping[str, int]] = ...) -> None: ...
