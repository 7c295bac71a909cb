"""Every row of the API's table of errors becomes its own exception."""

import asyncio
import inspect
import pickle

import grpc
import pytest

import darkroom_client
from darkroom_client import Client, errors

ROWS = [
    ("INVALID_ARGUMENT", "INVALID_REQUEST", errors.InvalidRequest),
    ("NOT_FOUND", "MODEL_NOT_FOUND", errors.ModelNotFound),
    ("NOT_FOUND", "PRESET_NOT_FOUND", errors.PresetNotFound),
    ("NOT_FOUND", "LORA_NOT_FOUND", errors.LoraNotFound),
    ("NOT_FOUND", "CONTROLNET_NOT_FOUND", errors.ControlNetNotFound),
    ("NOT_FOUND", "SCHEDULER_NOT_FOUND", errors.SchedulerNotFound),
    ("NOT_FOUND", "PREPROCESSOR_NOT_FOUND", errors.PreprocessorNotFound),
    ("NOT_FOUND", "TASK_NOT_FOUND", errors.TaskNotFound),
    ("NOT_FOUND", "REQUEST_NOT_FOUND", errors.RequestNotFound),
    ("FAILED_PRECONDITION", "UNSUPPORTED_COMBINATION", errors.UnsupportedCombination),
    ("ALREADY_EXISTS", "REQUEST_ID_IN_USE", errors.RequestIdInUse),
    ("UNIMPLEMENTED", "NOT_IMPLEMENTED", errors.NotImplementedYet),
    ("RESOURCE_EXHAUSTED", "QUEUE_FULL", errors.QueueFull),
    ("RESOURCE_EXHAUSTED", "DEADLINE_UNREACHABLE", errors.DeadlineUnreachable),
    ("FAILED_PRECONDITION", "DEADLINE_TOO_SHORT", errors.DeadlineTooShort),
    ("RESOURCE_EXHAUSTED", "OUT_OF_MEMORY", errors.OutOfMemory),
    ("RESOURCE_EXHAUSTED", "REQUEST_TOO_LARGE", errors.RequestTooLarge),
    ("RESOURCE_EXHAUSTED", "SLOW_READER", errors.SlowReader),
    ("UNAVAILABLE", "STARTING", errors.Starting),
    ("UNAVAILABLE", "SHUTTING_DOWN", errors.ShuttingDown),
    ("UNAVAILABLE", "DEVICE_LOST", errors.DeviceLost),
    ("DEADLINE_EXCEEDED", "", errors.DeadlineExceeded),
    ("CANCELLED", "", errors.Cancelled),
    ("UNAUTHENTICATED", "", errors.Unauthenticated),
    ("PERMISSION_DENIED", "OPERATOR_TOKEN_REQUIRED", errors.PermissionDenied),
    ("INTERNAL", "LOAD_FAILED", errors.LoadFailed),
    ("INTERNAL", "PLUGIN_FAILED", errors.PluginFailed),
    ("INTERNAL", "NON_FINITE", errors.NonFinite),
    # Beside the table: what a server of another version, or a proxy, may say.
    ("NOT_FOUND", "SOMETHING_NEW", errors.NotFound),
    ("INTERNAL", "GIVEN_UP", errors.JobFailed),
    ("INTERNAL", "", errors.JobFailed),
    ("RESOURCE_EXHAUSTED", "", errors.ResourceExhausted),
    ("UNKNOWN", "", errors.DarkroomError),
]


@pytest.mark.parametrize(("code", "reason", "kind"), ROWS)
def test_status_becomes_exception(scripted, abort_call, code, reason, kind):
    scripted.script = lambda request, context: abort_call(context, grpc.StatusCode[code], reason, "a sentence")
    with Client(scripted.address, retries=0) as client, pytest.raises(errors.DarkroomError) as caught:
        client.generate("a red circle").image()
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert caught.value.message == "a sentence"


def test_a_failure_in_the_middle_of_the_stream(scripted, client, abort_call, make_events):
    def script(request, context):
        yield make_events(request.request_id).accepted()
        abort_call(context, grpc.StatusCode.INTERNAL, "PLUGIN_FAILED", "the plugin `vignette` failed")

    scripted.script = script
    seen = []
    with pytest.raises(errors.PluginFailed, match="vignette"):
        seen.extend(client.generate("a red circle"))
    stream = client.generate("a red circle")
    events = iter(stream)
    next(events)
    with pytest.raises(errors.PluginFailed):
        next(events)
    assert list(events) == []


def test_all_violations_are_told(scripted, client, abort_call):
    wrong = [("parameters.width", "must be a multiple of 8"), ("parameters.seed", "must be 0 or more")]
    scripted.script = lambda request, context: abort_call(
        context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", "the request is not valid", wrong
    )
    with pytest.raises(errors.InvalidRequest) as caught:
        client.generate("a red circle", width=65).image()
    assert caught.value.violations == tuple(wrong)
    assert caught.value.violations[0].field == "parameters.width"
    assert str(caught.value).splitlines() == [
        "the request is not valid",
        "  parameters.width: must be a multiple of 8",
        "  parameters.seed: must be 0 or more",
    ]


def test_violations_that_stand_in_the_message_are_told_once():
    one, two = errors.Violation("a", "must be 1"), errors.Violation("b", "must be 2")
    assert str(errors.InvalidRequest("a: must be 1", violations=[one])) == "a: must be 1"
    both = errors.InvalidRequest("a: must be 1; b: must be 2", violations=[one, two])
    assert str(both).splitlines() == ["the request is not valid", "  a: must be 1", "  b: must be 2"]


def test_a_full_queue_says_when_to_try_again(scripted, abort_call):
    scripted.script = lambda request, context: abort_call(
        context, grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL", retry_after=1.5
    )
    with Client(scripted.address, retries=0) as client, pytest.raises(errors.QueueFull) as caught:
        client.generate("a red circle").image()
    assert caught.value.retry_after == 1.5


def test_the_same_from_asyncio(scripted, async_client, abort_call):
    scripted.script = lambda request, context: abort_call(context, grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")

    async def main():
        async with async_client as client:
            async for _ in client.generate("a red circle"):
                pass

    with pytest.raises(errors.ModelNotFound):
        asyncio.run(main())


def test_calls_that_the_server_does_not_know(client):
    with pytest.raises(errors.NotImplementedYet):
        client.tasks()
    with pytest.raises(errors.ModelNotFound):
        client.load_model("other")


def test_exceptions_survive_pickling():
    error = errors.QueueFull("full", reason="QUEUE_FULL", code="RESOURCE_EXHAUSTED", retry_after=2.0)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.retry_after) == (errors.QueueFull, "full", 2.0)


def test_the_docstring_draws_every_class():
    classes = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, errors.DarkroomError)]
    tree = errors.__doc__.splitlines()
    for cls in classes:
        line = next(line for line in tree if line.strip(" │├└─").partition(" ")[0] == cls.__name__)
        depth = line.index(cls.__name__) // 4
        assert depth == sum(issubclass(each, errors.DarkroomError) for each in cls.__mro__) - 1, cls
        assert getattr(darkroom_client, cls.__name__) is cls
