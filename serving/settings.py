"""Every setting of the server: a field, a flag, an environment variable and a key of the configuration file each.

Printed whole at start: a setting may name a file with a secret, and never holds one.
"""

import argparse
import dataclasses
import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.errors import StartupError
from serving.networks.device import DEVICES, ENGINES
from serving.networks.engines.engine import PRECISIONS
from serving.networks.members import Memory
from serving.networks.probe import PRECISION_TOLERANCE
from serving.outputs import Disclosure
from serving.policy import Policy
from serving.telemetry import logs

_DIRECTORY, _CONFIG = "THALWEG_DIRECTORY", "THALWEG_CONFIG"
IDENTITIES = ("auto", "certificate", "token", "address")
_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def _setting(default: Any, text: str, choices: Sequence[str] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"text": text, "choices": choices})


@dataclass(frozen=True)
class Settings:
    directories: tuple[Path, ...]  # ensemble directories and repositories of them
    host: str = _setting("127.0.0.1", "address to listen on")
    grpc_port: int = _setting(8001, "port of the gRPC service; 0 picks a free one")
    metrics_port: int = _setting(8002, "port of the Prometheus metrics; 0 picks a free one")
    http_port: int = _setting(
        -1, "port of the protocol over HTTP/JSON, with the gRPC port's TLS and tokens; 0 picks a free one; -1: none"
    )
    health_port: int = _setting(-1, "port of the health service alone, in plain text; 0 picks a free one; -1: none")
    tls_certificate: str = _setting("", "PEM file: the gRPC port speaks TLS with it; read again when it changes")
    tls_key: str = _setting("", "PEM file: its private key")
    tls_client_ca: str = _setting("", "PEM file: clients must show a certificate of this authority (mTLS)")
    tokens: str = _setting("", "file of bearer tokens, one a line: a call must bring one; read again when it changes")
    device: str = _setting("auto", "where members run; cuda fails at start if there is no usable GPU", DEVICES)
    engine: str = _setting("auto", "what runs them; openvino: on CPUs, tensorrt: on GPUs; auto: onnxruntime", ENGINES)
    cuda_graphs: bool = _setting(False, "on a GPU: replay the kernels of each batch size in one launch")
    precision: str = _setting("fp32", "of arithmetic; refused if answers to probe rows are off", PRECISIONS)
    precision_tolerance: float = _setting(
        PRECISION_TOLERANCE, "how far a probability of a probe row may be off with a --precision below fp32"
    )
    memory: str = _setting(
        "fast",
        "compact: members that are combinations of weight sets are made as they run",
        list(Memory),
    )
    policy: str = _setting(
        "mean",
        "mean: the default, and a request may choose another; random, curve, cascade: how every request is answered",
        (Policy.MEAN, Policy.RANDOM, Policy.CURVE, Policy.CASCADE),
    )
    round_probs: int = _setting(-1, "decimals of every number that is answered; -1: full precision")
    labels_only: bool = _setting(False, "answer with labels, and refuse to say more")
    query_budget_rate: float = _setting(0.0, "rows a second that a client may ask about, in the long run; 0: no limit")
    query_budget_burst: int = _setting(
        0, "rows that it may ask about at once, after a pause; 0: those of a minute, and a full batch at least"
    )
    near_duplicates: bool = _setting(False, "count rows that are close to an earlier one of the same client")
    client_identity: str = _setting(
        "auto", "what tells clients apart for these; auto: certificate with --tls-client-ca, else token", IDENTITIES
    )
    threads: int = _setting(0, "CPU threads that run members; 0: the CPUs that this process may use")
    max_batch_rows: int = _setting(64, "rows that run at once; a request with more is refused")
    max_queue_rows: int = _setting(1024, "rows that wait; a request beyond is refused at once")
    max_message_bytes: int = _setting(
        0,
        "size of a request; a larger one is refused; 0: what a full batch can take, in its longest form, and 1 MiB; "
        "17 MiB at least if it may be pictures",
    )
    max_picture_pixels: int = _setting(2**25, "pixels of all encoded pictures in a request; more are not even decoded")
    keepalive_seconds: float = _setting(60.0, "a connection silent for so long is pinged")
    keepalive_timeout_seconds: float = _setting(20.0, "a ping without an answer for so long closes the connection")
    min_ping_seconds: float = _setting(10.0, "a client that pings more often is told to go away")
    max_connection_age_seconds: float = _setting(
        0.0, "a connection as old is ended, so that clients find new replicas; 0: never"
    )
    max_connection_age_grace_seconds: float = _setting(30.0, "time for the requests on it to finish")
    require_signature: str = _setting(
        "", "PEM file of public keys: an ensemble that none of them has signed is refused"
    )
    watch: bool = _setting(False, "look for new, changed and removed ensembles, and load them while the old ones serve")
    watch_seconds: float = _setting(2.0, "time between two looks; what changes is acted on when two agree")
    allow_control: bool = _setting(False, "clients may list, load and unload models")
    drain_seconds: float = _setting(0.0, "time at SIGTERM between 'not ready' and refusing new requests")
    grace_seconds: float = _setting(30.0, "time after that for requests in flight to finish")
    log_level: str = _setting("info", "what is logged to stderr", ("debug", "info", "warning", "error"))
    log_format: str = _setting("text", "text: key=value, for people; json: an object a line", logs.FORMATS)
    otlp_endpoint: str = _setting("", "http://HOST:PORT of an OpenTelemetry collector; empty: no traces (extra [otel])")
    check: bool = _setting(False, "validate what would be served, every hash of it, and end")

    @property
    def forced_policy(self) -> Policy | None:
        """Answers every request, whatever it asks; None: a request may choose."""
        return None if self.policy == Policy.MEAN else Policy(self.policy)

    @property
    def disclosure(self) -> Disclosure:
        return Disclosure(self.round_probs if self.round_probs >= 0 else None, self.labels_only)

    @property
    def clients_by(self) -> str:
        """certificate, token or address; empty where nothing tells clients apart."""
        if self.client_identity != "auto":
            return self.client_identity
        return "certificate" if self.tls_client_ca else "token" if self.tokens else ""

    @property
    def budget_burst(self) -> float:
        return self.query_budget_burst or max(60 * self.query_budget_rate, self.max_batch_rows)

    def __post_init__(self) -> None:
        for name, field in _SETTINGS.items():
            if (choices := field.metadata["choices"]) and getattr(self, name) not in choices:
                raise StartupError(f"{_flag(name)} is '{getattr(self, name)}'; expected one of {', '.join(choices)}")
        for name, (low, high) in {
            "grpc_port": (0, 65535),
            "metrics_port": (0, 65535),
            "health_port": (-1, 65535),
            "http_port": (-1, 65535),
            "round_probs": (-1, 7),
            "query_budget_rate": (0.0, 1e9),
            "query_budget_burst": (0, 2**31 - 1),
            "threads": (0, 1024),
            "max_batch_rows": (1, 2**20),
            "max_queue_rows": (1, 2**24),
            "max_message_bytes": (0, 2**31 - 1),
            "max_picture_pixels": (1, 2**31 - 1),
            "keepalive_seconds": (1.0, 86400.0),
            "keepalive_timeout_seconds": (0.1, 3600.0),
            "min_ping_seconds": (0.0, 3600.0),
            "max_connection_age_seconds": (0.0, 86400.0),
            "max_connection_age_grace_seconds": (0.0, 3600.0),
            "watch_seconds": (0.01, 86400.0),
            "precision_tolerance": (0.0, 1.0),
            "drain_seconds": (0.0, 3600.0),
            "grace_seconds": (0.0, 3600.0),
        }.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise StartupError(f"{_flag(name)} is {value}; expected {low} to {high}")
        if bool(self.tls_certificate) != bool(self.tls_key) or (self.tls_client_ca and not self.tls_certificate):
            raise StartupError("--tls-certificate and --tls-key belong together, and --tls-client-ca needs both")
        if self.max_queue_rows < self.max_batch_rows:
            raise StartupError(
                f"--max-queue-rows is {self.max_queue_rows}; expected at least --max-batch-rows, {self.max_batch_rows}"
            )
        self._check_clients()

    def _check_clients(self) -> None:
        needed = {"certificate": ("--tls-client-ca", self.tls_client_ca), "token": ("--tokens", self.tokens)}
        flag, given = needed.get(self.client_identity, ("", "any"))
        if not given:
            raise StartupError(f"--client-identity is '{self.client_identity}'; expected {flag} with it")
        if self.query_budget_rate and not self.clients_by:
            raise StartupError(
                "--query-budget-rate needs what tells clients apart; expected --tls-client-ca, --tokens or "
                "--client-identity address"
            )
        if 0 < self.query_budget_burst < self.max_batch_rows:
            raise StartupError(
                f"--query-budget-burst is {self.query_budget_burst}; expected at least --max-batch-rows, "
                f"{self.max_batch_rows}, or a full request could never be answered"
            )


def parse(arguments: Sequence[str] | None, environment: Mapping[str, str] = os.environ) -> Settings:
    """A flag wins over its environment variable, that over the configuration file, that over the default.

    Raises StartupError, with the name of the setting.
    """
    given = vars(_parser().parse_intermixed_args(arguments))
    flags = {name: value for name, value in given.items() if name in _SETTINGS and value is not None}
    if given["directories"]:
        flags["directories"] = tuple(given["directories"])
    path = given["config"] or environment.get(_CONFIG)
    values = (_from_file(Path(path)) if path else {}) | _from_environment(environment) | flags
    if not values.get("directories"):
        raise StartupError(f"there is nothing to serve; expected REPO_OR_DIR, {_DIRECTORY} or 'directories' in a file")
    return Settings(**values)


def unknown_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """What looks like a setting of ours and is none, each with a near one. For a warning only: Kubernetes itself sets
    THALWEG_PORT and the like where a Service is called thalweg.
    """
    known = [_DIRECTORY, _CONFIG, *map(_variable, _SETTINGS)]
    return [f"{name}{_near(name, known)}" for name in environment if name.startswith("THALWEG_") and name not in known]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="thalweg-serve", description="Serves ensembles over gRPC.")
    parser.add_argument(
        "directories",
        metavar="REPO_OR_DIR",
        type=Path,
        nargs="*",
        help=f"ensemble directory, or repository: a folder of NAME or NAME/VERSION "
        f"({_DIRECTORY}, several separated by '{os.pathsep}')",
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file of settings, 'grpc_port = 8001' ({_CONFIG})")
    for name, field in _SETTINGS.items():
        help_text = f"{field.metadata['text']} (default {field.default}; {_variable(name)})".replace("%", "%%")
        if isinstance(field.default, bool):
            parser.add_argument(_flag(name), action=argparse.BooleanOptionalAction, help=help_text)
        else:
            choices = field.metadata["choices"] or None
            parser.add_argument(_flag(name), type=type(field.default), choices=choices, help=help_text)
    return parser


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if directories := [Path(text) for text in environment.get(_DIRECTORY, "").split(os.pathsep) if text]:
        values["directories"] = tuple(directories)
    for name, field in _SETTINGS.items():
        text = environment.get(_variable(name))
        if text is None:
            continue
        kind: Any = type(field.default)
        try:
            values[name] = _TRUTHS[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            expected = "true or false" if kind is bool else kind.__name__
            raise StartupError(f"{_variable(name)} is '{text}'; expected {expected}") from None
    return values


def _from_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StartupError(f"the configuration '{path}' cannot be read: {error}") from None
    for name, value in values.items():
        if name == "directories":
            if not (isinstance(value, list) and all(isinstance(each, str) for each in value)):
                raise StartupError(f"directories in '{path}' is {value!r}; expected a list of paths")
            values[name] = tuple(map(Path, value))
        elif name not in _SETTINGS:
            raise StartupError(f"'{path}' has an unknown setting '{name}'{_near(name, ['directories', *_SETTINGS])}")
        else:
            kind: Any = type(_SETTINGS[name].default)
            values[name] = kind(value) if (kind, type(value)) == (float, int) else value
            if type(values[name]) is not kind:
                raise StartupError(f"{name} in '{path}' is {value!r}; expected {kind.__name__}")
    return values


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _variable(name: str) -> str:
    return f"THALWEG_{name.upper()}"


_SETTINGS = {field.name: field for field in dataclasses.fields(Settings) if field.metadata}
