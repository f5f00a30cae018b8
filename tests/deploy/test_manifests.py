"""Everything in deploy/ that is applied renders, is accepted by Kubernetes and fits together."""

import re
import tomllib
from collections.abc import Iterator

import pytest
import yaml

from tests.deploy import promql, schemas, semantics
from tests.deploy.render import DEPLOY, FOLDERS, rendered, rendered_text

VERSION = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_rendered_is_accepted_by_the_oldest_and_the_newest_kubernetes(folder: str) -> None:
    for version in (schemas.OLDEST, schemas.NEWEST):
        assert [problem for each in rendered(folder) for problem in schemas.problems(each, version)] == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_what_is_rendered_fits_together(folder: str) -> None:
    assert semantics.problems(rendered(folder)) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_images_of_ours_have_the_version_of_the_package(folder: str) -> None:
    tags = re.findall(r"image: \S*thalweg-\w+:(\S+)", rendered_text(folder))
    assert set(tags) <= {VERSION, f"{VERSION}-cuda"}
    assert tags or "image:" not in rendered_text(folder)


def test_every_folder_that_can_be_applied_is_described() -> None:
    page = (DEPLOY / "README.md").read_text()
    components = [path.parent.name for path in DEPLOY.glob("components/*/kustomization.yaml")]
    assert [name for name in (*FOLDERS, *components) if f"`{name}`" not in page] == []


def test_the_mounted_settings_are_those_of_the_file() -> None:
    (settings,) = (each for each in rendered("base") if each["kind"] == "ConfigMap")
    assert settings["data"]["thalweg.toml"] == (DEPLOY / "base" / "thalweg.toml").read_text()
    assert tomllib.loads(settings["data"]["thalweg.toml"])["drain_seconds"] > 0


def test_the_autoscaler_asks_for_the_metric_that_the_adapter_makes() -> None:
    (scaler,) = (each for each in rendered("overlays/hpa") if each["kind"] == "HorizontalPodAutoscaler")
    (rule,) = yaml.safe_load((DEPLOY / "components/hpa/prometheus-adapter.yaml").read_text())["rules"]["custom"]
    assert scaler["spec"]["metrics"][0]["pods"]["metric"]["name"] == rule["name"]["as"]
    series = rule["seriesQuery"].partition("{")[0]
    query = rule["metricsQuery"].replace("<<.Series>>", series).replace("<<.LabelMatchers>>", 'namespace="a",pod="b"')
    assert promql.problems(query.replace("<<.GroupBy>>", "pod")) == []
    assert promql.problems(rule["seriesQuery"]) == []


def test_production_pods_may_run_where_only_restricted_ones_may() -> None:
    labels = [each["metadata"]["labels"] for each in rendered("overlays/production") if each["kind"] == "Namespace"]
    assert [each["pod-security.kubernetes.io/enforce"] for each in labels] == ["restricted"]


def names(folder: str, kind: str) -> Iterator[str]:
    return (each["metadata"]["name"] for each in rendered(folder) if each["kind"] == kind)


@pytest.mark.parametrize("folder", ["overlays/models-image", "overlays/models-fetch"])
def test_models_from_elsewhere_need_no_claim(folder: str) -> None:
    assert list(names("base", "PersistentVolumeClaim")) == ["thalweg-models"]
    assert list(names(folder, "PersistentVolumeClaim")) == []
