"""What no schema says and a cluster would only tell by not working: names that must meet, sizes that must fit, and
settings, arguments and metrics that our own programs must know.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from serving import settings
from serving.errors import StartupError
from serving.server import SERVICE
from tests.deploy import promql
from tests.deploy.render import Document
from trainer import __main__ as trainer
from trainer.errors import UserError

# What the image sets (deploy/Dockerfile.serving), and a container may override.
IMAGE = {"THALWEG_HOST": "0.0.0.0", "THALWEG_DIRECTORY": "/mnt/models"}
# What a user brings: docs/operations.md tells how.
BROUGHT = {
    ("Secret", "thalweg-tls"),
    ("Secret", "thalweg-storage"),
    ("PersistentVolumeClaim", "thalweg-data"),
    ("PersistentVolumeClaim", "thalweg-models"),  # beside the InferenceService and the training jobs
    ("Gateway", "thalweg"),
    ("ClusterTrainingRuntime", "torch-distributed"),  # comes with Kubeflow's trainer
}
TEMPLATES = ("Deployment", "Job")  # kinds with a pod in spec.template
SIZES = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
STOP_SECONDS = 4  # docs/operations.md, "Life": beyond what the settings say


@dataclass(frozen=True)
class Pod:
    """Labels and spec, whatever makes the pod."""

    owner: Document
    labels: Mapping[str, str]
    spec: Document

    @property
    def containers(self) -> list[Document]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def problems(documents: list[Document]) -> list[str]:
    """One line each. Expects what the schemas accept."""
    there = {(each["kind"], each["metadata"]["name"]) for each in documents}
    found = [] if len(there) == len(documents) else ["two resources have one name"]
    for document in documents:
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", document["metadata"]["name"]):
            found.append(f"{_name(document)}: that is no name")
    pods = list(_pods(documents))
    for pod in pods:
        found += [f"{_name(pod.owner)}: {problem}" for problem in _of_pod(pod, documents, there)]
    for document in documents:
        check = _OF_KIND.get(document["kind"])
        if check is not None:
            found += [f"{_name(document)}: {problem}" for problem in check(document, documents, pods)]
    return found


def _name(document: Document) -> str:
    return f"{document['kind']}/{document['metadata']['name']}"


def _pods(documents: list[Document]) -> Iterator[Pod]:
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] in TEMPLATES:
            yield Pod(document, spec["template"]["metadata"].get("labels", {}), spec["template"]["spec"])
        elif document["kind"] == "ClusterServingRuntime":
            services = [each for each in documents if each["kind"] == "InferenceService"]
            labels = spec.get("labels", {}) | ({"serving.kserve.io/inferenceservice": ""} if services else {})
            yield Pod(document, labels, spec)
        elif document["kind"] == "TrainJob":
            patch = spec["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
            template = patch["template"]["spec"]["template"]
            ours = {name: spec["trainer"][name] for name in ("image", "command", "args")}
            resources = {"resources": spec["trainer"]["resourcesPerNode"]}
            containers = [each | ours | resources for each in template["spec"]["containers"]]
            yield Pod(document, template["metadata"]["labels"], template["spec"] | {"containers": containers})


def matches(selector: Document, labels: Mapping[str, str]) -> bool:
    """A LabelSelector, as Kubernetes reads it; an empty one matches everything."""
    for expression in selector.get("matchExpressions", []):
        value, wanted = labels.get(expression["key"]), expression.get("values", [])
        if not {
            "In": value in wanted,
            "NotIn": value not in wanted,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]:
            return False
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def quantity(text: str | float) -> float:
    """2Gi, 500m, 2: in bytes, CPUs, pieces."""
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in SIZES:
        raise ValueError(f"'{text}' is no quantity")
    return float(match[1]) * SIZES[match[2]]


# Pods


def _of_pod(pod: Pod, documents: list[Document], there: set[tuple[str, str]]) -> Iterator[str]:
    spec, known = pod.spec, there | BROUGHT
    if pod.owner["kind"] == "Deployment":
        if not matches(pod.owner["spec"]["selector"], pod.labels):
            yield "the selector does not match the template's labels"
        for constraint in spec.get("topologySpreadConstraints", []):
            if not matches(constraint["labelSelector"], pod.labels):
                yield f"the spread over {constraint['topologyKey']} counts other pods"
    account = spec.get("serviceAccountName")
    if account and ("ServiceAccount", account) not in known:
        yield f"there is no ServiceAccount {account}"
    for volume in spec.get("volumes", []):
        for kind, name in _references(volume):
            if (kind, name) not in known:
                yield f"volume {volume['name']} needs {kind} {name}, which is not there"
    for container in pod.containers:
        for problem in (*_of_container(container, pod, known), *_of_security(container, pod)):
            yield f"container {container['name']}: {problem}"
    yield from _of_disk(pod)
    for container in pod.containers:
        if "thalweg-serving" in container["image"]:
            yield from _of_server(container, pod, documents)
        elif "thalweg-trainer" in container["image"]:
            yield from _of_trainer(container)


def _references(volume: Document) -> Iterator[tuple[str, str]]:
    if "configMap" in volume:
        yield "ConfigMap", volume["configMap"]["name"]
    if "secret" in volume:
        yield "Secret", volume["secret"]["secretName"]
    if "persistentVolumeClaim" in volume:
        yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]


def _of_container(container: Document, pod: Pod, known: set[tuple[str, str]]) -> Iterator[str]:
    ports = {port["containerPort"]: port.get("name", "") for port in container.get("ports", [])}
    if len(ports) != len(container.get("ports", [])) or len(set(ports.values())) != len(ports):
        yield "two ports have one number or name"
    for name in ports.values():
        if not re.fullmatch(r"(?=.*[a-z])[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?", name):
            yield f"'{name}' is no name of a port: at most 15 of a-z, 0-9 and -"
    for probe, port in _probes(container):
        if port not in ports:
            yield f"{probe} asks port {port}, which the container does not have"
    volumes = {volume["name"] for volume in pod.spec.get("volumes", [])}
    mounts = container.get("volumeMounts", [])
    for mount in mounts:
        # KServe brings /mnt/models.
        if mount["name"] not in volumes:
            yield f"volume {mount['name']} is mounted and not there"
    if len({mount["mountPath"] for mount in mounts}) != len(mounts):
        yield "two volumes are mounted at one path"
    variables = [each["name"] for each in container.get("env", [])]
    for each in container.get("env", []):
        for kind, field in (("ConfigMap", "configMapKeyRef"), ("Secret", "secretKeyRef")):
            name = each.get("valueFrom", {}).get(field, {}).get("name")
            if name and (kind, name) not in known:
                yield f"variable {each['name']} needs {kind} {name}, which is not there"
    for each in container.get("envFrom", []):
        for kind, field in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            name = each.get(field, {}).get("name")
            if name and (kind, name) not in known:
                yield f"variables need {kind} {name}, which is not there"
    for name in re.findall(r"\$\((\w+)\)", " ".join([*container.get("command", []), *container.get("args", [])])):
        if name not in variables:
            yield f"$({name}) is used and not set"
    image = container["image"]
    if not re.search(r":[^/]+$", image) or image.endswith(":latest"):
        yield f"image '{image}' has no version"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in requests or name not in limits:
            yield f"no request or no limit of {name}"
    for name, value in requests.items():
        if name in limits and quantity(value) > quantity(limits[name]):
            yield f"requests {value} of {name}, above the limit of {limits[name]}"
    for name in {*requests, *limits}:  # such as nvidia.com/gpu
        if "/" in name and (limits.get(name) not in range(1, 17) or requests.get(name, limits[name]) != limits[name]):
            yield f"{name} is no number of whole pieces, or its request is not its limit"


def _probes(container: Document) -> Iterator[tuple[str, int]]:
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if "grpc" in container.get(probe, {}):
            yield probe, container[probe]["grpc"]["port"]


def _of_security(container: Document, pod: Pod) -> Iterator[str]:
    """Pod Security Standards, "restricted", and a read-only root."""
    of_pod, own = pod.spec.get("securityContext", {}), container.get("securityContext", {})
    both = of_pod | own
    if not both.get("runAsNonRoot") or both.get("runAsUser") == 0:
        yield "may run as root"
    if both.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "runs without the runtime's seccomp profile"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
        yield "keeps capabilities"
    if not own.get("readOnlyRootFilesystem"):
        yield "may write to its root"


def _of_disk(pod: Pod) -> Iterator[str]:
    """A pod is evicted once its emptyDirs and logs exceed the sum of its containers' limits."""
    limits = [each.get("resources", {}).get("limits", {}).get("ephemeral-storage") for each in pod.spec["containers"]]
    disks = [each["emptyDir"] for each in pod.spec.get("volumes", []) if "emptyDir" in each]
    if any("sizeLimit" not in disk for disk in disks):
        yield "an emptyDir has no sizeLimit"
    elif disks and None in limits:
        yield "an emptyDir, and no limit of ephemeral-storage"
    elif sum(quantity(disk["sizeLimit"]) for disk in disks) > sum(map(quantity, limits)):
        yield "its emptyDirs may hold more than its limit of ephemeral-storage"


# Our programs


def _of_server(container: Document, pod: Pod, documents: list[Document]) -> Iterator[str]:
    try:
        chosen = _settings(container, pod, documents)
    except StartupError as error:
        yield f"thalweg-serve would not start: {error}"
        return
    if chosen.check:
        return
    ports = {port["containerPort"] for port in container["ports"]}
    serves = {chosen.grpc_port, chosen.metrics_port} | {chosen.health_port, chosen.http_port} - {-1}
    if ports != serves:
        yield f"the container's ports are {sorted(ports)}; the server listens on {sorted(serves)}"
    health = chosen.health_port if chosen.tls_certificate else chosen.grpc_port
    for probe, port in _probes(container):
        if port != health:
            yield f"{probe} asks port {port}; health is answered in plain text on {health}"
    for probe, service in (("startupProbe", SERVICE), ("readinessProbe", SERVICE), ("livenessProbe", "")):
        if container.get(probe, {}).get("grpc", {}).get("service") != service:
            yield f"{probe} must ask for '{service}'"
    if chosen.host != "0.0.0.0":
        yield f"the server listens on {chosen.host}, where nobody reaches it"
    mounted = [Path(mount["mountPath"]) for mount in container["volumeMounts"]]
    if pod.owner["kind"] == "ClusterServingRuntime":
        mounted.append(Path("/mnt/models"))  # KServe's
    files = [chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca, chosen.tokens, chosen.require_signature]
    for path in (*chosen.directories, *map(Path, filter(None, files))):
        if not any(path.is_relative_to(folder) for folder in mounted):
            yield f"the server reads {path}, where no volume is mounted"
    stops = chosen.drain_seconds + chosen.max_connection_age_seconds + chosen.grace_seconds + STOP_SECONDS
    graces = [pod.spec, *(each["spec"]["predictor"] for each in documents if each["kind"] == "InferenceService")]
    grace = max(each.get("terminationGracePeriodSeconds", 0) for each in graces)
    if grace < stops:
        yield f"the pod is killed {grace} s after SIGTERM; the server may take {stops} s to lose nothing"
    if chosen.drain_seconds < 2:
        yield "it drains for less than endpoints take to update"
    if chosen.device == "cuda" and "nvidia.com/gpu" not in container["resources"]["limits"]:
        yield "it wants a GPU and asks for none"
    if "nvidia.com/gpu" in container["resources"]["limits"] and chosen.device != "cuda":
        yield "it asks for a GPU, and would start without it"


def _settings(container: Document, pod: Pod, documents: list[Document]) -> settings.Settings:
    """As the program in the container would read them. Raises StartupError."""
    variables = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
    if unknown := settings.unknown_variables(variables):
        raise StartupError(f"no settings of the server: {unknown}")
    variables = IMAGE | variables
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as complaint:
        if config := variables.get("THALWEG_CONFIG"):
            file = Path(folder, "thalweg.toml")
            file.write_text(_mounted(config, container, pod, documents))
            variables["THALWEG_CONFIG"] = str(file)
        try:
            return settings.parse(container.get("args", []), variables)
        except SystemExit:
            raise StartupError(complaint.getvalue().strip()) from None


def _mounted(path: str, container: Document, pod: Pod, documents: list[Document]) -> str:
    """The text of a file from a ConfigMap. Raises StartupError."""
    folder, _, key = path.rpartition("/")
    names = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == folder]
    maps = [
        volume["configMap"]["name"]
        for volume in pod.spec["volumes"]
        if volume["name"] in names and "configMap" in volume
    ]
    for document in documents:
        if document["kind"] == "ConfigMap" and document["metadata"]["name"] in maps and key in document["data"]:
            return str(document["data"][key])
    raise StartupError(f"no ConfigMap that is there is mounted as {path}")


def _of_trainer(container: Document) -> Iterator[str]:
    arguments = [re.sub(r"\$\(\w+\)", "0", text) for text in container["args"]]
    with contextlib.redirect_stderr(io.StringIO()) as complaint:
        try:
            config = trainer.configuration(arguments)
        except (UserError, SystemExit) as error:
            yield f"thalweg-train would not start: {complaint.getvalue().strip() or error}"
            return
    (out,) = (Path(text.removeprefix("--out=")) for text in arguments if text.startswith("--out="))
    writable = [Path(mount["mountPath"]) for mount in container["volumeMounts"] if not mount.get("readOnly")]
    if not any(out.is_relative_to(folder) for folder in writable):
        yield f"it writes to {out}, where no volume is mounted"
    served = Path("/mnt/models", config.name, config.version)
    if [out / method for method in config.methods] != [served]:
        yield f"it writes {config.methods} of {out}; a server looks for {served}"


# Kinds


def _service(service: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    selected = [pod for pod in pods if matches({"matchLabels": service["spec"]["selector"]}, pod.labels)]
    if not selected:
        yield "selects no pod"
    for port in service["spec"]["ports"]:
        if not all(port["targetPort"] in _port_names(pod) for pod in selected):
            yield f"port {port['port']} leads to {port['targetPort']}, which its pods do not have"
        tls = any(_speaks_tls(pod) for pod in selected)
        if port.get("appProtocol") != ("https" if tls else "kubernetes.io/h2c"):
            yield f"says {port.get('appProtocol')}; its pods speak {'TLS' if tls else 'plain HTTP/2'}"


def _speaks_tls(pod: Pod) -> bool:
    return any(
        each["name"] == "THALWEG_TLS_CERTIFICATE" for container in pod.containers for each in container.get("env", [])
    )


def _port_names(pod: Pod) -> set[str]:
    return {port["name"] for container in pod.containers for port in container.get("ports", [])}


def _disruption_budget(budget: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    if not any(matches(budget["spec"]["selector"], pod.labels) for pod in pods):
        yield "selects no pod"
    for deployment in (each for each in documents if each["kind"] == "Deployment"):
        if deployment["spec"].get("replicas", 2) < 2:
            yield f"{_name(deployment)} has one replica, which could never be moved without a gap"


def _network_policy(policy: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    selected = [pod for pod in pods if matches(policy["spec"]["podSelector"], pod.labels)]
    if not selected:
        yield "selects no pod"
    opened = {port["port"] for rule in policy["spec"].get("ingress", []) for port in rule.get("ports", [])}
    for pod in selected:
        for port in opened - _port_names(pod):
            yield f"opens port {port}, which its pods do not have"
        # Probes come from the node, and need no rule.
        for port in _port_names(pod) - {"health"} - opened:
            yield f"leaves port {port} closed"


def _pod_monitor(monitor: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    selected = [pod for pod in pods if matches(monitor["spec"]["selector"], pod.labels)]
    if not selected:
        yield "selects no pod"
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        if not all(endpoint["port"] in _port_names(pod) for pod in selected):
            yield f"scrapes port {endpoint['port']}, which its pods do not have"
    for pod in selected:
        if pod.labels.get(monitor["spec"].get("jobLabel", "")) != "thalweg":
            yield 'its targets are not job="thalweg", for which the alerts ask'


def _autoscaler(scaler: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec = scaler["spec"]
    target = (spec["scaleTargetRef"].get("kind", "Deployment"), spec["scaleTargetRef"]["name"])
    targets = [each for each in documents if (each["kind"], each["metadata"]["name"]) == target]
    if not targets:
        yield f"scales {'/'.join(target)}, which is not there"
    for each in targets:
        if "replicas" in each["spec"]:
            yield f"{_name(each)} sets replicas, to which every apply would go back"
    low, high = (spec.get(f"{end}Replicas", spec.get(f"{end}ReplicaCount", 1)) for end in ("min", "max"))
    if not 1 <= low < high:
        yield f"scales from {low} to {high}"
    if len({each["kind"] for each in documents} & {"HorizontalPodAutoscaler", "ScaledObject"}) > 1:
        yield "an autoscaler and KEDA would fight"
    for trigger in spec.get("triggers", []):
        yield from promql.problems(trigger["metadata"]["query"])


def _route(route: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    services = {each["metadata"]["name"]: each for each in documents if each["kind"] == "Service"}
    for parent in route["spec"]["parentRefs"]:
        if ("Gateway", parent["name"]) not in BROUGHT:
            yield f"hangs on Gateway {parent['name']}"
    for rule in route["spec"]["rules"]:
        for backend in rule["backendRefs"]:
            service = services.get(backend["name"])
            if service is None or backend["port"] not in [port["port"] for port in service["spec"]["ports"]]:
                yield f"leads to {backend['name']}:{backend['port']}, which is not there"
        for match in rule.get("matches", []):
            if match["method"]["service"] != SERVICE:
                yield f"matches {match['method']['service']}; the server has {SERVICE}"


def _inference_service(service: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    model = service["spec"]["predictor"]["model"]
    runtimes = {each["metadata"]["name"]: each["spec"] for each in documents if each["kind"] == "ClusterServingRuntime"}
    runtime = runtimes.get(model["runtime"])
    if runtime is None:
        yield f"runs on {model['runtime']}, which is not there"
        return
    formats = [(each["name"], each["version"]) for each in runtime["supportedModelFormats"]]
    if (model["modelFormat"]["name"], model["modelFormat"]["version"]) not in formats:
        yield f"has format {model['modelFormat']}; the runtime reads {formats}"
    if model["protocolVersion"] not in runtime["protocolVersions"]:
        yield f"speaks {model['protocolVersion']}; the runtime speaks {runtime['protocolVersions']}"
    if not re.match(r"(pvc|s3|gs|oci|https)://.", model["storageUri"]):
        yield f"'{model['storageUri']}' is no place that KServe knows"


def _serving_runtime(runtime: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    ports = runtime["spec"]["containers"][0]["ports"]
    if not re.search("h2c|grpc", ports[0]["name"]):
        yield f"KServe takes port {ports[0]['name']} for HTTP/1.1"


def _rules(rules: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    every = [rule for group in rules["spec"]["groups"] for rule in group["rules"]]
    labels = ("model", "version", "class")
    recorded: promql.Series = {rule["record"]: {name: set() for name in labels} for rule in every if "record" in rule}
    for rule in every:
        for problem in promql.problems(rule["expr"], recorded):
            yield f"{rule.get('alert', rule.get('record'))}: {problem}"


def _job(job: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec = job["spec"]
    restarts = spec["template"]["spec"].get("restartPolicy", "Always")
    if restarts == "Always":
        yield "a Job's pods cannot restart for ever"
    if restarts != "Never" and ("podFailurePolicy" in spec or "backoffLimitPerIndex" in spec):
        yield "its rules about failures need restartPolicy: Never"
    actions = {"FailJob", "Ignore", "Count"} | ({"FailIndex"} if "backoffLimitPerIndex" in spec else set())
    for rule in spec.get("podFailurePolicy", {}).get("rules", []):
        if rule["action"] not in actions:
            yield f"a failure's action is {rule['action']}; expected one of {sorted(actions)}"
    if ("backoffLimitPerIndex" in spec or "job-completion-index" in str(spec)) and spec.get(
        "completionMode"
    ) != "Indexed":
        yield "asks for an index, and its completionMode is not Indexed"


def _train_job(job: Document, documents: list[Document], pods: list[Pod]) -> Iterator[str]:
    spec = job["spec"]
    if ("ClusterTrainingRuntime", spec["runtimeRef"]["name"]) not in BROUGHT:
        yield f"runs on {spec['runtimeRef']['name']}, which Kubeflow's trainer does not bring"
    if spec["trainer"]["resourcesPerNode"]["limits"].get("nvidia.com/gpu") != spec["trainer"]["numProcPerNode"]:
        yield "has another number of processes than of GPUs on a node"


_OF_KIND = {
    "ClusterServingRuntime": _serving_runtime,
    "GRPCRoute": _route,
    "HorizontalPodAutoscaler": _autoscaler,
    "Job": _job,
    "InferenceService": _inference_service,
    "NetworkPolicy": _network_policy,
    "PodDisruptionBudget": _disruption_budget,
    "PodMonitor": _pod_monitor,
    "PrometheusRule": _rules,
    "ScaledObject": _autoscaler,
    "Service": _service,
    "TrainJob": _train_job,
}
