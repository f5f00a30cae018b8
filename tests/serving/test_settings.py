import dataclasses
import json
from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.settings import Settings, parse, unknown_variables


def test_a_flag_wins_over_its_variable_that_over_the_file_and_that_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('grpc_port = 1\nhost = "file"\npolicy = "random"\nwatch = true\ndrain_seconds = 2\n')
    environment = {"THALWEG_GRPC_PORT": "2", "THALWEG_HOST": "environment"}
    settings = parse(["runs/x", "--config", str(file), "--grpc-port", "3", "--no-watch"], environment)
    assert settings == Settings(
        (Path("runs/x"),), grpc_port=3, host="environment", policy="random", drain_seconds=2.0, watch=False
    )
    assert parse([], {"THALWEG_CONFIG": str(file), "THALWEG_DIRECTORY": "x"}).watch


def test_every_setting_can_come_from_a_file_and_from_a_variable(tmp_path: Path) -> None:
    """Each by its default, written as TOML and as text."""
    defaults = Settings((Path("x"),))
    fields = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(Settings) if field.metadata}
    file = tmp_path / "serve.toml"
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    file.write_text("\n".join(["directories = ['x']", *lines]))
    assert parse(["--config", str(file)], {}) == defaults
    variables = {f"THALWEG_{name.upper()}": str(value) for name, value in fields.items()}
    assert parse(["x"], variables) == defaults
    assert unknown_variables(variables) == []


def test_the_directories_too_may_come_from_elsewhere(tmp_path: Path) -> None:
    assert parse([], {"THALWEG_DIRECTORY": "/models/x"}).directories == (Path("/models/x"),)
    assert parse([], {"THALWEG_DIRECTORY": "/models/x:y"}).directories == (Path("/models/x"), Path("y"))
    assert parse(["a", "b"], {"THALWEG_DIRECTORY": "/models/x"}).directories == (Path("a"), Path("b"))
    (tmp_path / "serve.toml").write_text('directories = ["c"]')
    assert parse(["--config", str(tmp_path / "serve.toml")], {}).directories == (Path("c"),)
    with pytest.raises(StartupError, match="nothing to serve; expected REPO_OR_DIR, THALWEG_DIRECTORY"):
        parse([], {})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"THALWEG_GRPC_PORT": "many"}, "THALWEG_GRPC_PORT is 'many'; expected int"),
        ({"THALWEG_WATCH": "perhaps"}, "THALWEG_WATCH is 'perhaps'; expected true or false"),
        ({"THALWEG_POLICY": "best"}, "--policy is 'best'; expected one of mean, random"),
        ({"THALWEG_GRPC_PORT": "70000"}, "--grpc-port is 70000; expected 0 to 65535"),
        ({"THALWEG_DRAIN_SECONDS": "nan"}, "--drain-seconds is nan"),
        ({"THALWEG_MAX_BATCH_ROWS": "0"}, "--max-batch-rows is 0; expected 1 to"),
        ({"THALWEG_MAX_QUEUE_ROWS": "8"}, "--max-queue-rows is 8; expected at least --max-batch-rows, 64"),
        (
            {"THALWEG_QUERY_BUDGET_RATE": "1"},
            "--query-budget-rate needs what tells clients apart; expected --tls-client-ca, --tokens or",
        ),
        (
            {"THALWEG_QUERY_BUDGET_RATE": "1", "THALWEG_QUERY_BUDGET_BURST": "63", "THALWEG_TOKENS": "x"},
            "--query-budget-burst is 63; expected at least --max-batch-rows, 64",
        ),
        ({"THALWEG_CLIENT_IDENTITY": "token"}, "--client-identity is 'token'; expected --tokens with it"),
        ({"THALWEG_CLIENT_IDENTITY": "certificate"}, "expected --tls-client-ca with it"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        parse(["x"], environment)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grcp_port = 1", "has an unknown setting 'grcp_port'; did you mean grpc_port"),
        ("[server]\ngrpc_port = 1", "has an unknown setting 'server'"),
        ("grpc_port = '1'", "grpc_port in '{file}' is '1'; expected int"),
        ("grpc_port = true", "grpc_port in '{file}' is True; expected int"),
        ("watch = 1", "watch in '{file}' is 1; expected bool"),
        ("policy = 'best'", "--policy is 'best'; expected one of mean, random"),
        ("directories = 'x'", "directories in '{file}' is 'x'; expected a list of paths"),
        ("grpc_port = 1\ngrpc_port = 2", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(text)
    with pytest.raises(StartupError) as caught:
        parse(["x", "--config", str(file)], {})
    assert message.format(file=file) in str(caught.value)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="cannot be read"):
        parse(["x", "--config", str(tmp_path / "none.toml")], {})


def test_variables_that_are_no_setting_are_told_with_near_ones() -> None:
    environment = {"THALWEG_GRPC_PROT": "1", "PATH": "x", "THALWEG_DEVICE": "cpu", "THALWEG_CONFIG": "x"}
    assert unknown_variables(environment) == ["THALWEG_GRPC_PROT; did you mean THALWEG_GRPC_PORT?"]


def test_a_clients_burst_is_a_minute_or_a_full_batch_unless_it_is_given() -> None:
    def burst(rate: float, burst: int = 0) -> float:
        return Settings((Path("x"),), tokens="t", query_budget_rate=rate, query_budget_burst=burst).budget_burst

    assert (burst(0.5), burst(10.0), burst(10.0, 100)) == (64, 600, 100)
