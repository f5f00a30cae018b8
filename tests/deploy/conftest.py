"""Images, built once a session."""

import pytest

from tests.deploy import containers


@pytest.fixture(scope="session")
def serving_image() -> str:
    return containers.build("thalweg-serving:cpu", "Dockerfile.serving", "cpu")
