from pathlib import Path

import pytest

from serving.errors import StartupError
from serving.settings import Settings, parse


def test_a_flag_wins_over_its_variable_and_that_over_the_default() -> None:
    environment = {"THALWEG_GRPC_PORT": "9001", "THALWEG_HOST": "0.0.0.0", "THALWEG_POLICY": "random"}
    settings = parse(["runs/x", "--grpc-port", "7001"], environment)
    assert settings == Settings((Path("runs/x"),), grpc_port=7001, host="0.0.0.0", policy="random")


def test_the_directories_too_may_come_from_the_environment() -> None:
    assert parse([], {"THALWEG_DIRECTORY": "/models/x"}).directories == (Path("/models/x"),)
    assert parse([], {"THALWEG_DIRECTORY": "/models/x:y"}).directories == (Path("/models/x"), Path("y"))
    assert parse(["a", "b"], {"THALWEG_DIRECTORY": "/models/x"}).directories == (Path("a"), Path("b"))
    with pytest.raises(SystemExit) as caught:
        parse([], {})
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"THALWEG_GRPC_PORT": "many"}, "THALWEG_GRPC_PORT is 'many'; expected int"),
        ({"THALWEG_POLICY": "best"}, "THALWEG_POLICY is 'best'; expected one of mean, random"),
        ({"THALWEG_GRPC_PORT": "70000"}, "--grpc-port is 70000; expected 0 to 65535"),
        ({"THALWEG_DRAIN_SECONDS": "nan"}, "--drain-seconds is nan"),
        ({"THALWEG_MAX_BATCH_ROWS": "0"}, "--max-batch-rows is 0; expected 1 to"),
        ({"THALWEG_MAX_QUEUE_ROWS": "8"}, "--max-queue-rows is 8; expected at least --max-batch-rows, 64"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(environment: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError) as caught:
        parse(["x"], environment)
    assert message in str(caught.value)
