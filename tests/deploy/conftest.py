"""Images, built once a session."""

import pytest

from tests.deploy import containers


@pytest.fixture(scope="session")
def serving_image() -> str:
    return containers.build("thalweg-serving:cpu", "Dockerfile.serving", "cpu")


@pytest.fixture(scope="session")
def haproxy_program(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """HAProxy 3.0, of Debian 13, in a container that sees this machine's network and the tests' files.

    2.6, of Debian 12, loses an answer now and then where connections age: docs/operations.md.
    """
    image = containers.debian("localhost/thalweg-haproxy", "trixie", "haproxy")
    files = tmp_path_factory.getbasetemp()
    run = ["run", "--rm", "--network=host", f"--volume={files}:{files}:ro", image]
    return [*containers.PODMAN, *run, "haproxy", "-W"]  # with a master, or process 1 does not end on SIGTERM
