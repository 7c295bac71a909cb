"""compose.yaml and what it hands to Prometheus and Grafana: lint, and that what they name is there."""

import json
import re
import subprocess
import sys
from hashlib import sha256
from typing import Any

import pytest

from darkroom_server.cli.commands import serve
from tests.deploy.files import DEPLOY, SECONDS_TO_END, Dockerfile, documents, seconds, settings

(COMPOSE,) = documents("compose.yaml")
(CUDA,) = documents("compose.cuda.yaml")
DARKROOM = COMPOSE["services"]["darkroom"]


def check(text: str, tmp_path: Any) -> int:
    """The exit code of a check against the specification of Compose."""
    file = tmp_path / "compose.yaml"
    file.write_text(text)
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    return subprocess.run(command, capture_output=True, check=False).returncode


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_the_specification_of_compose(name: str, tmp_path: Any) -> None:
    text = (DEPLOY / name).read_text()
    assert check(text, tmp_path) == 0
    assert check(text.replace("image:", "images:", 1), tmp_path) == 1


def test_its_environment_is_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = r"\$\{DARKROOM_TOKEN_SHA256:\?[^}]*\}"
    given = {name: re.sub(variable, "0" * 64, value) for name, value in DARKROOM["environment"].items()}
    found = settings(monkeypatch, {**Dockerfile().environment, **given})
    assert [token.role for token in found.tokens] == ["operator"]
    assert set(given) <= {f"DARKROOM_{name.upper()}" for name in type(found).model_fields}
    assert seconds(DARKROOM["stop_grace_period"]) > found.drain_seconds + SECONDS_TO_END


def test_its_head_makes_a_token() -> None:
    lines = re.findall(r"^#   (export .*)$", (DEPLOY / "compose.yaml").read_text(), re.MULTILINE)
    script = "\n".join([*lines, 'echo "$DARKROOM_TOKEN" "$DARKROOM_TOKEN_SHA256"'])
    token, digest = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(token) == 64
    assert digest == sha256(token.encode()).hexdigest()


def test_it_is_the_image_of_the_dockerfile() -> None:
    dockerfile = Dockerfile()
    context = DEPLOY / DARKROOM["build"]["context"]
    assert (context / DARKROOM["build"]["dockerfile"]).samefile(DEPLOY / "Dockerfile")
    assert set(DARKROOM["build"]["args"]) <= set(dockerfile.arguments)
    mounted = dict(volume.split(":")[:2] for volume in DARKROOM["volumes"])
    assert set(mounted.values()) == dockerfile.volumes
    published = {int(port.rsplit(":", 1)[1]) for port in DARKROOM["ports"]}
    assert published < dockerfile.ports  # all but the metrics, which have no token
    assert f"{dockerfile.last['WORKDIR']}/darkroom.toml" in (DEPLOY / "compose.yaml").read_text()


def test_nobody_else_reaches_its_ports() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert len(ports) == 3
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_names_within_it_are_there() -> None:
    volumes = [volume.split(":")[0] for service in COMPOSE["services"].values() for volume in service["volumes"]]
    assert set(volumes) == set(COMPOSE["volumes"])
    used = [each["source"] for service in COMPOSE["services"].values() for each in service.get("configs", [])]
    assert sorted(used) == sorted(COMPOSE["configs"])
    assert all((DEPLOY / each["file"]).is_file() for each in COMPOSE["configs"].values())
    assert set(CUDA["services"]) <= set(COMPOSE["services"])


def test_prometheus_reads_the_images_metrics() -> None:
    (config,) = documents("prometheus.yaml")
    (targets,) = (target for job in config["scrape_configs"] for target in job["static_configs"])
    port = Dockerfile().environment["DARKROOM_METRICS"].rpartition(":")[2]
    assert targets["targets"] == [f"darkroom:{port}"]


def test_grafana_has_the_data_source_and_the_dashboard() -> None:
    (sources,), (dashboards,) = documents("grafana-datasources.yaml"), documents("grafana-dashboards.yaml")
    (source,), (provider,) = sources["datasources"], dashboards["providers"]
    port = COMPOSE["services"]["prometheus"]["ports"][0].rpartition(":")[2]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", f"http://prometheus:{port}", True)
    grafana = COMPOSE["services"]["grafana"]
    targets = {each["source"]: each["target"] for each in grafana["configs"]}
    dashboard = targets["grafana-dashboard"]
    assert dashboard == grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert dashboard.rpartition("/")[0] == provider["options"]["path"]
    variables = json.loads((DEPLOY / "grafana.json").read_text())["templating"]["list"]
    assert [each["query"] for each in variables if each["type"] == "datasource"] == [source["type"]]


def test_the_command_is_one_of_the_server() -> None:
    assert Dockerfile().command == ["darkroom", serve.__name__]
