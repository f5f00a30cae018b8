"""`thalweg-health`: asks a server's gRPC health service; the health check of a container that has no shell."""

import argparse
import os
import sys
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc


def main(arguments: list[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit code: 0 if it serves; 1 if not, with one line on stderr."""
    parser = argparse.ArgumentParser(prog="thalweg-health", description="Asks a server's gRPC health service.")
    parser.add_argument(
        "target",
        nargs="?",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{_port(environment)}",
        help="in plain text: with TLS the server's --health-port (default: %(default)s)",
    )
    parser.add_argument(
        "--service",
        default="inference.GRPCInferenceService",
        help="a model's name; '' asks whether the server lives (default: %(default)s, all models)",
    )
    parser.add_argument("--timeout-seconds", type=float, default=3.0, help="default: %(default)s")
    options = parser.parse_args(arguments)
    with grpc.insecure_channel(options.target) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=options.service)
            check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
            answer = check(request, timeout=options.timeout_seconds)
        except grpc.RpcError as error:
            return _failed(f"{options.target} answers {error.code().name}: {error.details()}")
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return 0 if status == "SERVING" else _failed(f"{options.target} is {status}")


def _port(environment: Mapping[str, str]) -> str:
    """Where a server with the same environment answers in plain text."""
    health = environment.get("THALWEG_HEALTH_PORT", "-1")
    return health if health != "-1" else environment.get("THALWEG_GRPC_PORT", "8001")


def _failed(text: str) -> int:
    print(f"thalweg-health: {text}", file=sys.stderr)  # noqa: T201
    return 1


if __name__ == "__main__":
    sys.exit(main())
