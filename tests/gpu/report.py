"""A pytest plugin: each test's outcome goes into results.json at once, so that a run that is cut off loses nothing."""

import os
from pathlib import Path

import pytest

from tests.benchmarks import results

RESULTS = "DARKROOM_RESULTS"  # environment variable: the file


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        found = {"outcome": report.outcome, "s": round(report.duration, 2), "why": report.longreprtext[-6000:]}
        results.update(Path(os.environ[RESULTS]), "pytest", **{report.nodeid: found})
