"""Reads the metrics of a running server, as Prometheus does."""

import urllib.request
from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from tests.support import RunningServer


def read(server: RunningServer) -> dict[str, float]:
    """Every sample, by its name and labels as text."""
    with urllib.request.urlopen(f"http://{server.app.metrics.address}/metrics", timeout=20) as answer:
        return samples(answer.read().decode())


def samples(text: str) -> dict[str, float]:
    """The samples in what a server tells Prometheus."""
    found = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {
        "".join([each.name, *(f" {name}={value}" for name, value in sorted(each.labels.items()))]): each.value
        for each in found
    }


def total(found: Mapping[str, float], name: str) -> float:
    """Of all samples of a name, whatever their labels."""
    return sum(value for key, value in found.items() if key.partition(" ")[0] == name)


def late_turns(found: Mapping[str, float], seconds: int) -> float:
    """How often the event loop was later than so many seconds, which are a bucket's bound."""
    name = "darkroom_event_loop_delay_seconds"
    return found[f"{name}_count"] - found[f"{name}_bucket le={seconds:.1f}"]
