"""The manifests for Kubernetes: lint, and that what they name is there."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from darkroom.v1 import image_service_pb2
from tests.deploy.files import DEPLOY, SECONDS_TO_END, TOKENS, Dockerfile, documents, settings

BY_KIND: dict[str, list[Any]] = {}
for each in documents("kubernetes.yaml"):
    BY_KIND.setdefault(each["kind"], []).append(each)
(DEPLOYMENT,), (CONFIG,), (SERVICE,), (BUDGET,) = (
    BY_KIND[kind] for kind in ("Deployment", "ConfigMap", "Service", "PodDisruptionBudget")
)
POD = DEPLOYMENT["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
OF_OPERATORS = ("RayService", "ServiceMonitor")  # kinds of others, without a schema here


@pytest.mark.parametrize("version", ["1.30", "1.37"])
@pytest.mark.parametrize("name", ["kubernetes.yaml", "rayservice.yaml", "servicemonitor.yaml"])
def test_the_schemas_of_kubernetes(name: str, version: str) -> None:
    found = documents(name)
    for manifest in found:
        if manifest["kind"] not in OF_OPERATORS:
            kubernetes_validate.validate(manifest, version, strict=True)
            with pytest.raises(kubernetes_validate.ValidationError):
                kubernetes_validate.validate({**manifest, "specs": {}}, version, strict=True)
    assert {manifest["metadata"]["name"] for manifest in found} <= {"darkroom", "darkroom-edge", *claims()}


def claims() -> set[str]:
    return {each["metadata"]["name"] for each in BY_KIND["PersistentVolumeClaim"]}


def test_the_settings_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (name,) = CONFIG["data"]
    file = tmp_path / name
    file.write_text(CONFIG["data"][name])
    (token,) = CONTAINER["env"]
    given = {**Dockerfile().environment, token["name"]: TOKENS}
    found = settings(monkeypatch, given, file)
    assert [each.name for each in found.tokens] == ["me"]
    assert str(found.models[0].path).startswith("hub:")


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "darkroom.toml"
    file.write_text(CONFIG["data"]["darkroom.toml"])
    drain = settings(monkeypatch, {}, file).drain_seconds
    command, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert POD["terminationGracePeriodSeconds"] > float(pause) + drain + SECONDS_TO_END


def test_the_container_is_the_image() -> None:
    dockerfile = Dockerfile()
    assert {port["containerPort"] for port in CONTAINER["ports"]} == dockerfile.ports
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["fsGroup"] == dockerfile.user
    mounts = {mount["name"]: mount["mountPath"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert set(mounts) == set(volumes)
    claimed = {
        name: volume["persistentVolumeClaim"]["claimName"]
        for name, volume in volumes.items()
        if "persistentVolumeClaim" in volume
    }
    assert {mounts[name] for name in claimed} == dockerfile.volumes
    assert set(claimed.values()) == claims()
    assert volumes["config"]["configMap"]["name"] == CONFIG["metadata"]["name"]
    (name,) = CONFIG["data"]
    command, flag, file = CONTAINER["args"]
    assert [command] == dockerfile.command[1:]
    assert (flag, file) == ("--config", f"{mounts['config']}/{name}")
    assert CONTAINER["image"].split(":")[0] == "darkroom"


def test_probes_ask_what_there_is() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    probes = [CONTAINER[f"{kind}Probe"]["grpc"] for kind in ("startup", "liveness", "readiness")]
    assert {probe["port"] for probe in probes} == {ports["grpc"]}
    service = image_service_pb2.DESCRIPTOR.services_by_name["ImageService"].full_name
    assert [probe.get("service", "") for probe in probes] == ["", "", service]


def test_selectors_find_the_pod() -> None:
    (monitor,) = documents("servicemonitor.yaml")
    assert LABELS == DEPLOYMENT["spec"]["selector"]["matchLabels"] == SERVICE["spec"]["selector"]
    assert BUDGET["spec"]["selector"]["matchLabels"] == LABELS
    assert SERVICE["metadata"]["labels"] == monitor["spec"]["selector"]["matchLabels"]
    ports = {port["name"]: port["targetPort"] for port in SERVICE["spec"]["ports"]}
    assert set(ports.values()) == {port["name"] for port in CONTAINER["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= set(ports)


def test_the_text_above_names_what_is_used() -> None:
    text = (DEPLOY / "kubernetes.yaml").read_text().partition("apiVersion")[0]
    secret: dict[str, Any] = CONTAINER["env"][0]["valueFrom"]["secretKeyRef"]
    assert f"generic {secret['name']} " in text
    assert f"--from-literal={secret['key']}=" in text
