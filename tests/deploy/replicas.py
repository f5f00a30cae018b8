"""The Deployment's replicas as containers: the rendered pod template, run by `podman play kube`.

Podman knows no gRPC probes, claims, spreading and grace period; what is left is run as it stands: image, user, rights,
limits, environment, the ConfigMap's settings. Where a probe decides in a cluster, the tests ask the same service.
"""

import copy
import json
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from tests.deploy.containers import Container, podman
from tests.deploy.render import Document, rendered

NETWORK, SUBNET = "thalweg-test", "10.89.77"


class Replica(Container):
    """One pod, at an address of its own that another can take later."""

    def __init__(self, overlay: str, image: str, models: Path, index: int, **settings: str) -> None:
        """models: a repository of ensembles. settings: environment variables, beside the Deployment's."""
        documents = rendered(f"overlays/{overlay}")
        (deployment,) = [each for each in documents if each["kind"] == "Deployment"]
        self.pod = f"thalweg-{index}"
        self.ip = f"{SUBNET}.{10 + index}"
        self.grpc, self.metrics = f"{self.ip}:8001", f"{self.ip}:8002"
        pod = _pod(self.pod, deployment["spec"]["template"], image, models, settings)
        maps = [each for each in documents if each["kind"] == "ConfigMap"]
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump_all([*maps, pod], file)
            file.flush()
            # The same hardware address for the same address, or neighbours remember the old one.
            place = (f"--network={NETWORK}", f"--ip={self.ip}", f"--mac-address=02:00:00:00:00:{10 + index}")
            podman("play", "kube", *place, file.name)
        self.id = f"{self.pod}-server"

    def rows(self) -> float:
        """That it has answered."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=30) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("ensemble_rows_total"))

    def remove(self) -> None:
        podman("pod", "rm", "--force", "--time=0", self.pod)


def _pod(name: str, template: Document, image: str, models: Path, settings: dict[str, str]) -> Document:
    spec: dict[str, Any] = copy.deepcopy(template["spec"])
    for key in ("nodeSelector", "topologySpreadConstraints", "serviceAccountName", "terminationGracePeriodSeconds"):
        spec.pop(key, None)
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            del volume["persistentVolumeClaim"]
            volume["hostPath"] = {"path": str(models)}
    (container,) = spec["containers"]
    for key in ("startupProbe", "readinessProbe", "livenessProbe", "ports"):
        container.pop(key, None)
    container["image"] = image
    container["env"] += [{"name": key, "value": value} for key, value in settings.items()]
    spec["restartPolicy"] = "Never"  # in place of a ReplicaSet, the test
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, **template["metadata"]}, "spec": spec}


def create_network() -> None:
    names = [network["name"] for network in json.loads(podman("network", "ls", "--format=json"))]
    if NETWORK not in names:
        podman("network", "create", f"--subnet={SUBNET}.0/24", NETWORK)
