"""Tests of a single server that hold for a cluster, too: those that know nothing but the API. Over a replica in this
process, and, slowly, over those of Ray Serve."""

# ruff: noqa: F401

import numpy as np
import pytest

from tests.darkroom_server.api.test_catalog import models as models
from tests.darkroom_server.api.test_catalog import schedulers as schedulers
from tests.darkroom_server.api.test_catalog import (
    test_every_name_and_alias_is_taken,
    test_health_is_serving,
    test_models_are_listed,
    test_reflection_lists_the_services_and_describes_each,
    test_schedulers_are_listed,
    test_tasks_are_listed,
)
from tests.darkroom_server.api.test_invalid_requests import test_a_bad_field_is_named_by_its_path
from tests.darkroom_server.api.test_kept_jobs import (
    test_a_job_goes_on_without_its_client,
    test_a_watch_resumes_anywhere,
    test_pages_have_every_job_once,
    test_the_id_of_a_job_that_is_not_kept_is_refused,
    test_what_is_refused_is_not_kept,
)
from tests.darkroom_server.api.test_refusals import (
    test_a_job_must_be_named,
    test_cancel_needs_a_request_id,
    test_cancel_of_an_unknown_job,
    test_names_are_exact,
    test_several_unknown_names_come_together,
    test_unknown_names_are_not_found,
    test_what_the_model_cannot_do,
)
from tests.darkroom_server.api.test_stream import (
    test_accepted_parameters_make_the_same_picture_again,
    test_accepted_resolves_everything,
    test_completed_says_where_the_time_went,
    test_events_come_in_order,
    test_metadata_can_be_left_out_of_the_file,
    test_output_formats,
    test_previews_can_be_thinned_out,
    test_previews_have_the_size_asked_for,
    test_previews_turn_into_the_picture,
    test_steps_say_where_they_are,
    test_the_picture_carries_its_recipe,
)
from tests.darkroom_server.test_parity import BASE, CASES, MAX_LEVELS, Oracle, test_deterministic_gives_the_same_bytes
from tests.darkroom_server.test_parity import oracle as oracle
from tests.support import RunningServer

pytestmark = [pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore:::ray")]


@pytest.fixture(scope="module", params=["edge_of_all", pytest.param("cluster", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest) -> RunningServer:
    """In place of a single server."""
    found: RunningServer = request.getfixturevalue(request.param)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES)[::5])
def test_a_picture_equals_that_of_diffusers(name: str, server: RunningServer, oracle: Oracle) -> None:
    """Some of the cases, and alone: strangers may be at the other replica."""
    asked, arguments, _ = CASES[name]
    difference = int(np.abs(server.generate(**{**BASE, **asked}).pixels - oracle(**arguments)).max())
    oracle.table.append((name, difference, difference))
    assert difference <= MAX_LEVELS
