"""Three replicas of the rendered Deployment behind nginx, HAProxy and our client, while each of them is replaced."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from serving.client import Client
from tests import tiny_ensemble
from tests.deploy.containers import needs_containers
from tests.deploy.replicas import Replica, create_network
from tests.load import Load, asking, asking_once
from tests.proxies import haproxy, needs, nginx

pytestmark = [needs_containers, needs["nginx"], pytest.mark.slow]

CALLS = 5000
ONCE = [("grpc.enable_retries", 0)]
ROUND_ROBIN = ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}')


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_ensemble.write(folder / "tiny" / "1")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    return folder


class Fleet:
    def __init__(self, image: str, models: Path, stack: contextlib.ExitStack) -> None:
        self._image, self._models, self._stack = image, models, stack
        create_network()
        self.replicas = [self._start(i) for i in range(3)]

    def _start(self, index: int) -> Replica:
        replica = self._stack.enter_context(Replica("cpu", self._image, self._models, index))
        replica.wait_until_ready()
        return replica

    def replace(self, index: int, signal: str = "TERM") -> int:
        """Returns the exit code of the one that was there."""
        old = self.replicas[index]
        old.signal(signal)
        code = old.wait()
        assert "Traceback" not in old.logs()
        old.remove()
        self.replicas[index] = self._start(index)
        return code


@pytest.fixture
def fleet(serving_image: str, models: Path) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        yield Fleet(serving_image, models, stack)


@contextlib.contextmanager
def loads(fleet: Fleet, folder: Path, haproxy_program: list[str]) -> Iterator[dict[str, Load]]:
    """By what is in front of the replicas; behind the proxies, and in `once`, clients that make one attempt.

    `once` sends again what never left, as gRPC does unless told: without that a new stream may meet an aged
    connection's GOAWAY.
    """
    targets = [replica.grpc for replica in fleet.replicas]
    everyone = "ipv4:" + ",".join(targets)
    with (
        nginx(folder, targets) as behind_nginx,
        haproxy(folder, [(target, "8002") for target in targets], haproxy_program) as behind_haproxy,
        grpc.insecure_channel(behind_nginx, ONCE) as nginx_channel,
        grpc.insecure_channel(behind_haproxy, ONCE) as haproxy_channel,
        grpc.insecure_channel(everyone, [ROUND_ROBIN]) as once_channel,
        Client(everyone, "tiny") as client,
        Load(asking_once(nginx_channel), 2) as by_nginx,
        Load(asking_once(haproxy_channel), 2) as by_haproxy,
        Load(asking_once(once_channel), 2) as once,
        Load(asking(client), 2) as by_client,
    ):
        yield {"nginx": by_nginx, "haproxy": by_haproxy, "round_robin": by_client, "round_robin, once": once}


def test_nobody_notices_that_one_replica_after_the_other_is_replaced(
    fleet: Fleet, tmp_path: Path, haproxy_program: list[str]
) -> None:
    with loads(fleet, tmp_path, haproxy_program) as by_front:
        for index in range(3):
            assert fleet.replace(index) == 0
        for load in by_front.values():
            load.wait_for(max(0, CALLS - load.answers), timeout_s=300)
    for front, load in by_front.items():
        print(f"{front}: {len(load.failures)} of {load.answers + len(load.failures)} calls failed")
        assert load.failures == [], front
        assert load.answers >= CALLS


def test_a_killed_replica_costs_a_client_that_retries_nothing(
    fleet: Fleet, tmp_path: Path, haproxy_program: list[str]
) -> None:
    """Behind a proxy, calls that it had begun may fail; how many is reported, and not more than were in flight."""
    with loads(fleet, tmp_path, haproxy_program) as by_front:
        by_front["round_robin"].wait_for(500)
        assert fleet.replace(0, "KILL") == 137
        by_front["round_robin"].wait_for(1000)
    for front, load in by_front.items():
        print(f"{front}: {len(load.failures)} of {load.answers + len(load.failures)} calls failed")
        assert len(load.failures) <= (0 if front == "round_robin" else 2 * 2), load.failures
