"""Reads the metrics of a running server, as Prometheus does."""

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from tests.support import RunningServer


def read(server: RunningServer) -> dict[str, float]:
    """Every sample, by its name and labels as text."""
    with urllib.request.urlopen(f"http://{server.app.metrics.address}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    return {
        "".join([each.name, *(f" {name}={value}" for name, value in sorted(each.labels.items()))]): each.value
        for each in samples
    }
