"""Every setting of the server: a field, a flag and an environment variable each. Printed whole at start."""

import argparse
import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import StartupError
from serving.policy import Policy

DEVICES = ("auto", "cpu", "cuda")
_DIRECTORY = "THALWEG_DIRECTORY"
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _setting(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"text": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    directories: tuple[Path, ...]  # ensemble directories and repositories of them
    host: str = _setting("127.0.0.1", "address to listen on")
    grpc_port: int = _setting(8001, "port of the gRPC service; 0 picks a free one")
    metrics_port: int = _setting(8002, "port of the Prometheus metrics; 0 picks a free one")
    device: str = _setting("auto", "where members run; cuda fails at start if there is no usable GPU", DEVICES)
    policy: str = _setting(
        "mean",
        "mean: the default, and a request may choose another; random: every request is answered so, whatever it asks",
        (Policy.MEAN, Policy.RANDOM),
    )
    threads: int = _setting(0, "CPU threads that run members; 0: the CPUs that this process may use")
    max_batch_rows: int = _setting(64, "rows that run at once; a request with more is refused")
    max_queue_rows: int = _setting(1024, "rows that wait; a request beyond is refused at once")
    max_message_bytes: int = _setting(
        0, "size of a request; a larger one is refused; 0: what a full batch can take, in its longest form, and 1 MiB"
    )
    watch: bool = _setting(False, "look for new, changed and removed ensembles, and load them while the old ones serve")
    watch_seconds: float = _setting(2.0, "time between two looks; what changes is acted on when two agree")
    allow_control: bool = _setting(False, "clients may list, load and unload models")
    drain_seconds: float = _setting(0.0, "time at SIGTERM between 'not ready' and refusing new requests")
    grace_seconds: float = _setting(30.0, "time after that for requests in flight to finish")
    log_level: str = _setting("info", "what is logged to stderr", ("debug", "info", "warning", "error"))

    def __post_init__(self) -> None:
        for name, (low, high) in {
            "grpc_port": (0, 65535),
            "metrics_port": (0, 65535),
            "threads": (0, 1024),
            "max_batch_rows": (1, 2**20),
            "max_queue_rows": (1, 2**24),
            "max_message_bytes": (0, 2**31 - 1),
            "watch_seconds": (0.01, 86400.0),
            "drain_seconds": (0.0, 3600.0),
            "grace_seconds": (0.0, 3600.0),
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise StartupError(f"{_flag(name)} is {value}; expected {low} to {high}")
        if self.max_queue_rows < self.max_batch_rows:
            raise StartupError(
                f"--max-queue-rows is {self.max_queue_rows}; expected at least --max-batch-rows, {self.max_batch_rows}"
            )


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """A flag wins over its environment variable, and that over the default. Raises StartupError."""
    parser = argparse.ArgumentParser(prog="thalweg-serve", description="Serves ensembles over gRPC.")
    parser.add_argument(
        "directories",
        metavar="REPO_OR_DIR",
        type=Path,
        nargs="*",
        help=f"ensemble directory, or repository: a folder of NAME or NAME/VERSION "
        f"(THALWEG_DIRECTORY, several separated by '{os.pathsep}')",
    )
    fields = [field for field in dataclasses.fields(Settings) if field.metadata]
    for field in fields:
        help_text = f"{field.metadata['text']} (default {field.default}; {_variable(field.name)})"
        choices = field.metadata["choices"] or None
        if isinstance(field.default, bool):
            parser.add_argument(_flag(field.name), action=argparse.BooleanOptionalAction, help=help_text)
        else:
            parser.add_argument(_flag(field.name), type=type(field.default), choices=choices, help=help_text)
    given = vars(parser.parse_intermixed_args(arguments))

    directories = given["directories"] or map(Path, filter(None, environment.get(_DIRECTORY, "").split(os.pathsep)))
    values: dict[str, Any] = {"directories": tuple(directories)}
    if not values["directories"]:
        parser.error(f"the following arguments are required: REPO_OR_DIR (or {_DIRECTORY})")
    for field in fields:
        if given[field.name] is not None:
            values[field.name] = given[field.name]
        elif (text := environment.get(_variable(field.name))) is not None:
            values[field.name] = _from_text(field, text)
    return Settings(**values)


def _from_text(field: "dataclasses.Field[Any]", text: str) -> Any:
    choices = field.metadata["choices"]
    if choices and text not in choices:
        raise StartupError(f"{_variable(field.name)} is '{text}'; expected one of {', '.join(choices)}")
    kind: Any = type(field.default)
    if kind is bool:
        if text.lower() not in _TRUTHS:
            raise StartupError(f"{_variable(field.name)} is '{text}'; expected true or false")
        return _TRUTHS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise StartupError(f"{_variable(field.name)} is '{text}'; expected {kind.__name__}") from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"THALWEG_{name.upper()}"
