"""What is handed to Ray Serve: its configuration, and the example for Kubernetes."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from darkroom_server.cli.commands import deploy
from darkroom_server.cluster.scaling import TAKEN, WAITING, Scaling
from darkroom_server.config.settings import ClusterSettings, Settings, TlsSettings

MANIFEST = Path(__file__).parents[3] / "server/deploy/rayservice.yaml"
pytestmark = pytest.mark.filterwarnings("ignore:::ray")


def built(config: dict[str, Any]) -> Any:
    """The deployment of a configuration that Serve takes."""
    from ray.serve.schema import ServeDeploySchema

    from darkroom_server.cluster.deployment import BUILDER, build

    (application,) = ServeDeploySchema.model_validate(config).applications
    assert application.import_path == BUILDER
    return build(application.args)._bound_deployment


def test_settings_come_through() -> None:
    from darkroom_server.cluster.deployment import serve_config

    cluster = ClusterSettings(replicas=3, replica_cpus=2, replica_gpus=1)
    tls = TlsSettings.model_construct(certificate=Path("a"), key=Path("b"))
    settings = Settings(threads=2, cluster=cluster, idle_seconds=5.0).model_copy(update={"tls": tls, "http": "x:1"})
    deployment = built(yaml.safe_load(yaml.safe_dump(serve_config(settings))))
    assert deployment.num_replicas == 3
    options = deployment.ray_actor_options
    assert (options["num_cpus"], options["num_gpus"]) == (2, 1)
    (given,) = deployment.init_args
    assert Settings(**given) == Settings(threads=2, cluster=cluster, idle_seconds=5.0)


def test_their_number_follows_the_load_within_bounds() -> None:
    from darkroom_server.cluster.deployment import serve_config

    cluster = ClusterSettings(min_replicas=0, max_replicas=4, wait_seconds=2, idle_seconds=60)
    deployment = built(yaml.safe_load(yaml.safe_dump(serve_config(Settings(cluster=cluster)))))
    scaling = deployment._deployment_config.autoscaling_config
    assert [scaling.min_replicas, scaling.initial_replicas, scaling.max_replicas] == [0, 1, 4]
    assert scaling.downscale_delay_s == 60
    policy = scaling.policy.get_policy()(**scaling.policy.policy_kwargs)
    assert policy(context(here=1, waiting=[7.0], taken=[1.0]))[0] == 4


def context(here: int, waiting: list[float], taken: list[float]) -> Any:
    """What Ray Serve tells a policy of replicas that have reported."""
    from ray.serve.config import AutoscalingContext

    told = {name: dict(enumerate(values)) for name, values in ((WAITING, waiting), (TAKEN, taken))}
    names = inspect.signature(AutoscalingContext).parameters
    given = {"current_num_replicas": here, "aggregated_metrics": {name: each for name, each in told.items() if each}}
    return AutoscalingContext(**{**dict.fromkeys(names), **given})


@pytest.mark.parametrize(
    ("here", "waiting", "taken", "wanted"),
    [
        (1, [0.0], [1.0], 1),  # full, but nobody waits
        (1, [4.9], [1.0], 1),
        (1, [5.1], [1.0], 2),
        (2, [30.0, 0.0], [1.0, 1.0], 6),
        (3, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], 3),
        (3, [0.0, 0.0, 0.0], [0.3, 0.3, 0.1], 1),  # one takes them all
        (2, [0.0, 0.0], [0.5, 0.4], 2),
        (2, [0.0], [0.1], 2),  # one has not said yet
        (1, [], [], 1),
        (1, [0.0], [0.01], 1),
        (2, [0.0, 0.0], [0.0, 0.0], 0),
    ],
)
def test_more_replicas_for_what_waits_and_fewer_for_what_has_places(
    here: int, waiting: list[float], taken: list[float], wanted: int
) -> None:
    assert Scaling(5.0)(context(here, waiting, taken)) == (wanted, {})


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas, 3, is more than max_replicas, 2"),
        ({"replicas": 3, "max_replicas": 2}, "replicas, 3, is more than max_replicas, 2"),
        ({"min_replicas": 0}, "set max_replicas, too"),
    ],
)
def test_numbers_that_contradict_each_other_are_refused(wrong: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ClusterSettings.model_validate(wrong)


def test_the_command_prints_it(tmp_path: Path) -> None:
    command = typer.Typer()
    command.command()(deploy)
    file = tmp_path / "darkroom.toml"
    file.write_text("threads = 2\n[[models]]\nname = 'x'\npath = 'hub:o/n@v1'\n")
    result = CliRunner().invoke(command, ["--config", str(file), "--replicas", "2"])
    assert result.exit_code == 0, result.output
    (given,) = built(yaml.safe_load(result.output)).init_args
    assert [given["threads"], given["cluster"]["replicas"], given["models"][0]["path"]] == [2, 2, "hub:o/n@v1"]


def test_the_manifest_is_right() -> None:
    service, edge, balanced, budget = yaml.safe_load_all(MANIFEST.read_text())
    deployment = built(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert deployment.num_replicas == workers["replicas"]
    (given,) = deployment.init_args
    for pod in (workers["template"]["spec"], edge["spec"]["template"]["spec"]):
        assert pod["terminationGracePeriodSeconds"] > given["drain_seconds"] + 10
    labels = edge["spec"]["template"]["metadata"]["labels"]
    assert labels == edge["spec"]["selector"]["matchLabels"] == balanced["spec"]["selector"]
    assert labels == budget["spec"]["selector"]["matchLabels"]
    (container,) = edge["spec"]["template"]["spec"]["containers"]
    assert f"{service['metadata']['name']}-head-svc:6379" in container["args"][0]
    assert container["readinessProbe"]["grpc"]["service"] == "darkroom.v1.ImageService"
