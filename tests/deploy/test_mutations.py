"""The checks are worth something: whatever we break in a manifest, some check says so."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.deploy import schemas, semantics
from tests.deploy.render import FOLDERS, Document, rendered

Break = Callable[[list[Document]], object]
LEAST_BREAKS = 10  # of each folder


def of(documents: list[Document], kinds: str) -> Any:
    """The first of these kinds, or what `POD` and `CONTAINER` mean. Raises StopIteration: there is none to break."""
    if kinds == "CONTAINER":
        return of(documents, "POD")["containers"][0]
    if kinds == "POD":
        owner = of(documents, "Deployment Job ClusterServingRuntime TrainJob")
        if owner["kind"] == "TrainJob":
            return parent(documents, "TrainJob", NODE)[0]["spec"]
        return owner["spec"] if owner["kind"] == "ClusterServingRuntime" else owner["spec"]["template"]["spec"]
    return next(each for each in documents if each["kind"] in kinds.split())


def parent(documents: list[Document], kinds: str, path: str) -> tuple[Any, Any]:
    """What holds the last step of a path such as spec/ports/0/name, and that step; ~ stands for / in a name."""
    place = of(documents, kinds)
    *steps, last = (int(step) if step.lstrip("-").isdigit() else step.replace("~", "/") for step in path.split("/"))
    for step in steps:
        place = place[step]
    return place, last


def put(kinds: str, path: str, value: Any) -> Break:
    def break_it(documents: list[Document]) -> None:
        place, last = parent(documents, kinds, path)
        place[last] = value

    return break_it


def cut(kinds: str, path: str) -> Break:
    def break_it(documents: list[Document]) -> None:
        place, last = parent(documents, kinds, path)
        del place[last]

    return break_it


def drop(kind: str) -> Break:
    return lambda documents: documents.remove(of(documents, kind))


def volume(field: str, name: str, value: Any) -> Break:
    """Of the first volume that is of this type."""
    return lambda documents: next(each for each in of(documents, "POD")["volumes"] if field in each)[field].update(
        {name: value}
    )


def argument(text: str) -> Break:
    return lambda documents: of(documents, "CONTAINER").setdefault("args", []).append(text)


def variable(name: str, value: str) -> Break:
    """Of the server."""
    return lambda documents: of(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"].append(
        {"name": name, "value": value}
    )


def setting(old: str, new: str) -> Break:
    def break_it(documents: list[Document]) -> None:
        data = of(documents, "ConfigMap")["data"]
        assert old in data["thalweg.toml"]
        data["thalweg.toml"] = data["thalweg.toml"].replace(old, new)

    return break_it


def maybe_root(documents: list[Document]) -> None:
    for each in (of(documents, "POD").get("securityContext", {}), of(documents, "CONTAINER")["securityContext"]):
        each.pop("runAsNonRoot", None)


def replicas_beside(autoscaler: str) -> Break:
    return lambda documents: (of(documents, autoscaler), put("Deployment", "spec/replicas", 3)(documents))


OTHER = {"matchLabels": {"app": "other"}}
RULE = "spec/groups/-1/rules/-1/expr"
MODEL = "spec/predictor/model"
NODE = "spec/runtimePatches/0/trainingRuntimeSpec/template/spec/replicatedJobs/0/template/spec/template/spec"

BREAKS: dict[str, Break] = {
    "another selector of the Deployment": put("Deployment", "spec/selector", OTHER),
    "another label of the pods": put("Deployment", "spec/template/metadata/labels", {"app": "other"}),
    "another selector of the Service": put("Service", "spec/selector", {"app": "other"}),
    "another target port": put("Service", "spec/ports/0/targetPort", "http"),
    "a Service in another protocol": put("Service", "spec/ports/0/appProtocol", "http"),
    "a port with another name": put("CONTAINER", "ports/0/name", "web"),
    "a port with a name of 16 letters": put("CONTAINER", "ports/0/name", "a" * 16),
    "a port with another number": put("CONTAINER", "ports/0/containerPort", 9001),
    "a probe of another port": put("CONTAINER", "readinessProbe/grpc/port", 8002),
    "a probe of a port that is not there": put("CONTAINER", "livenessProbe/grpc/port", 9),
    "a probe of another service": put("CONTAINER", "readinessProbe/grpc/service", "digits2"),
    "no startup probe": cut("CONTAINER", "startupProbe"),
    "a missing ConfigMap": drop("ConfigMap"),
    "a missing ServiceAccount": drop("ServiceAccount"),
    "a missing claim": volume("persistentVolumeClaim", "claimName", "other"),
    "a missing Secret": volume("secret", "secretName", "other"),
    "a request above its limit": put("CONTAINER", "resources/requests/memory", "64Gi"),
    "no limit of memory": cut("CONTAINER", "resources/limits/memory"),
    "half a GPU": put("CONTAINER", "resources/limits/nvidia.com~gpu", 1.5),
    "a GPU that is not used": put("CONTAINER", "resources/limits/nvidia.com~gpu", 0),
    "a field with a typing error": put("CONTAINER", "imagePullPolice", "Always"),
    "a field in another place": put("CONTAINER", "terminationGracePeriodSeconds", 45),
    "a number as text": put("CONTAINER", "ports/0/containerPort", "8001"),
    "an image without a version": put("CONTAINER", "image", "thalweg-serving"),
    "a mount without a volume": put("CONTAINER", "volumeMounts/0/name", "other"),
    "a volume without a size": put("POD", "volumes/-1", {"name": "tmp", "emptyDir": {}}),
    "more on disk than the pod may hold": volume("emptyDir", "sizeLimit", "100Ti"),
    "a root that may be written": cut("CONTAINER", "securityContext/readOnlyRootFilesystem"),
    "a user that may be root": maybe_root,
    "a capability": put("CONTAINER", "securityContext/capabilities/add", ["NET_ADMIN"]),
    "an argument that the program does not know": argument("--drian-seconds=5"),
    "a variable that the program does not know": variable("THALWEG_DRAIN", "5"),
    "a setting that the program does not know": setting("drain_seconds", "drain_second"),
    "a setting of another type": setting("watch = true", 'watch = "yes"'),
    "a server for its own host alone": variable("THALWEG_HOST", "127.0.0.1"),
    "models where nothing is mounted": variable("THALWEG_DIRECTORY", "/models"),
    "no drain": setting("drain_seconds = 5.0", "drain_seconds = 0.0"),
    "a stop that is cut short": put("Deployment", "spec/template/spec/terminationGracePeriodSeconds", 30),
    "another selector of the PodMonitor": put("PodMonitor", "spec/selector", OTHER),
    "a scrape of another port": put("PodMonitor", "spec/podMetricsEndpoints/0/port", "http"),
    "a scrape interval that is none": put("PodMonitor", "spec/podMetricsEndpoints/0/interval", "15"),
    "another job in the metrics": put("PodMonitor", "spec/jobLabel", "app"),
    "another selector of the budget": put("PodDisruptionBudget", "spec/selector", OTHER),
    "an API that Kubernetes removed": put("PodDisruptionBudget", "apiVersion", "policy/v1beta1"),
    "an autoscaler that Kubernetes removed": put("HorizontalPodAutoscaler", "apiVersion", "autoscaling/v2beta2"),
    "one replica under a budget": put("Deployment", "spec/replicas", 1),
    "scrapes shut out": cut("NetworkPolicy", "spec/ingress/1"),
    "another selector of the policy": put("NetworkPolicy", "spec/podSelector", OTHER),
    "two of one name": lambda d: d.append(of(d, "Service ClusterServingRuntime ServiceAccount")),
    "a name that is none": lambda d: d[0]["metadata"].update(name="Thalweg_1"),
    "a rule on a metric that is not there": put("PrometheusRule", RULE, "rate(ensemble_request_total[5m]) > 0"),
    "a rule on a label that is not there": put("PrometheusRule", RULE, 'ensemble_ready{mode="x"} == 0'),
    "a rule on a value that never comes": put("PrometheusRule", RULE, 'ensemble_requests_total{code="Internal"} > 0'),
    "a rule that does not parse": put("PrometheusRule", RULE, "rate(ensemble_rows_total[5m] > 0"),
    "an autoscaler of another Deployment": put("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "other"),
    "KEDA on another Deployment": put("ScaledObject", "spec/scaleTargetRef/name", "other"),
    "replicas beside an autoscaler": replicas_beside("HorizontalPodAutoscaler"),
    "replicas beside KEDA": replicas_beside("ScaledObject"),
    "more replicas at least than at most": put("HorizontalPodAutoscaler", "spec/minReplicas", 50),
    "KEDA on a metric that is not there": put("ScaledObject", "spec/triggers/0/metadata/query", "sum(ensemble_queue)"),
    "a route to another port": put("GRPCRoute", "spec/rules/0/backendRefs/0/port", 80),
    "a route for another service": put("GRPCRoute", "spec/rules/0/matches/0/method/service", "inference.Inference"),
    "a route that breaks a rule in CEL": put("GRPCRoute", "spec/rules/0/matches/0/method", {}),
    "another runtime": put("InferenceService", f"{MODEL}/runtime", "other"),
    "another format": put("InferenceService", f"{MODEL}/modelFormat/name", "onnx"),
    "a protocol that the runtime does not speak": put("InferenceService", f"{MODEL}/protocolVersion", "v1"),
    "a model at no place": put("InferenceService", f"{MODEL}/storageUri", "digits"),
    "a trainer's pods that restart": put("Job", "spec/template/spec/restartPolicy", "Always"),
    "a limit for each index without one": cut("Job", "spec/completionMode"),
    "a run that nobody would serve": argument("--set=version=2"),
    "a run that is gone with its pod": put("Job", "spec/template/spec/containers/0/args/2", "--out=/runs/digits"),
    "a seed that nobody sets": cut("Job", "spec/template/spec/containers/0/env"),
    "a policy on a kind of failure that is none": put("Job", "spec/podFailurePolicy/rules/0/action", "Retry"),
    "a runtime that is not there": put("TrainJob", "spec/runtimeRef/name", "torch"),
    "more processes than GPUs": put("TrainJob", "spec/trainer/numProcPerNode", 8),
    "no process": put("TrainJob", "spec/trainer/numProcPerNode", 0),
    "a recipe that is none": put("TrainJob", "spec/trainer/args/1", "image"),
    "an argument that the trainer does not know": put("TrainJob", "spec/trainer/args/-1", "--precision=bf16"),
    "a setting that the trainer does not know": put("TrainJob", "spec/trainer/args/-1", "--set=precison=bf16"),
    "a request above its limit on a node": put("TrainJob", "spec/trainer/resourcesPerNode/requests/memory", "1Ti"),
    "no port for gRPC under KServe": lambda d: of(d, "ClusterServingRuntime")["spec"]["containers"][0][
        "ports"
    ].reverse(),
}


def broken(folder: str) -> Iterator[tuple[str, list[Document]]]:
    for name, break_it in BREAKS.items():
        documents = rendered(folder)
        try:
            break_it(documents)
        except (StopIteration, KeyError, IndexError):
            continue  # nothing of that kind in this folder
        yield name, documents


def found(documents: list[Document]) -> list[str]:
    refused = [problem for each in documents for problem in schemas.problems(each)]
    return refused or semantics.problems(documents)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_break_is_caught(folder: str) -> None:
    breaks = list(broken(folder))
    assert len(breaks) >= LEAST_BREAKS
    assert [name for name, documents in breaks if not found(documents)] == []


def test_every_break_breaks_some_folder() -> None:
    assert {name for folder in FOLDERS for name, _ in broken(folder)} == set(BREAKS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_resource_takes_an_unknown_field_or_version(folder: str) -> None:
    for index, document in enumerate(rendered(folder)):
        for change in ({"unknown": 1}, {"apiVersion": "thalweg/v9"}, {"kind": "Thalweg"}):
            changed = [*rendered(folder)[:index], document | change]
            assert any(schemas.problems(each) for each in changed), (document["kind"], change)
