"""The Python client of Darkroom, the gRPC server for diffusion image generation.

from darkroom_client import Client

with Client() as client:
    for event in client.generate("a red circle on a blue background", num_inference_steps=30):
        print(event)
"""

import importlib
import typing

if typing.TYPE_CHECKING:
    from darkroom_client._aio import AsyncClient
    from darkroom_client._enums import (
        AssetChangeKindName,
        DisconnectPolicyName,
        ImageFormatName,
        JobStateName,
        LoadingPhaseName,
        PreviewModeName,
        PriorityName,
        PromptSyntaxName,
        ResidencyName,
        ResizeModeName,
        SafetyPolicyName,
        SafetyVerdictName,
        SigmaScheduleName,
        TimestepSpacingName,
    )
    from darkroom_client._stream import AsyncStream
    from darkroom_client._sync import Client, Stream
    from darkroom_client.catalog import (
        AssetChange,
        BatchLoad,
        ControlNet,
        Device,
        Job,
        Lora,
        Model,
        ModelReplica,
        Plugin,
        Preprocessor,
        Preset,
        Scheduler,
        ServerInfo,
        ServerLimits,
        ServerLoad,
        Task,
        WeightsLoad,
    )
    from darkroom_client.errors import (
        Cancelled,
        ControlNetNotFound,
        DarkroomError,
        DeadlineExceeded,
        DeadlineTooShort,
        DeadlineUnreachable,
        DeviceLost,
        InvalidOptions,
        InvalidRequest,
        JobFailed,
        JobLogFull,
        JobLogUnavailable,
        KeptJobsFull,
        LoadFailed,
        LoraNotFound,
        ModelNotFound,
        NonFinite,
        NotFound,
        NotImplementedYet,
        OutOfMemory,
        PermissionDenied,
        PluginFailed,
        PreprocessorNotFound,
        PresetNotFound,
        QueueFull,
        RequestIdInUse,
        RequestNotFound,
        RequestTooLarge,
        ResourceExhausted,
        SchedulerNotFound,
        ServerUnreachable,
        ShuttingDown,
        SlowReader,
        Starting,
        TaskNotFound,
        Unauthenticated,
        Unavailable,
        UnsupportedCombination,
        Violation,
    )
    from darkroom_client.events import (
        Accepted,
        Completed,
        ControlImage,
        Event,
        Image,
        Loading,
        Picture,
        Preview,
        Queued,
        Step,
        Timings,
    )
    from darkroom_client.options import (
        ConnectionOptions,
        ControlSpec,
        HiresFix,
        ImageLike,
        JobOptions,
        LoraSpec,
        OutputOptions,
        ParameterOptions,
        PreviewOptions,
        SchedulerSpec,
        SizeConditioning,
    )
    from darkroom_client.recipes import Recipe, read_recipe

__version__: str  # of the distribution; read on first use

__all__ = [
    "Accepted",
    "AssetChange",
    "AssetChangeKindName",
    "AsyncClient",
    "AsyncStream",
    "BatchLoad",
    "Cancelled",
    "Client",
    "Completed",
    "ConnectionOptions",
    "ControlImage",
    "ControlNet",
    "ControlNetNotFound",
    "ControlSpec",
    "DarkroomError",
    "DeadlineExceeded",
    "DeadlineTooShort",
    "DeadlineUnreachable",
    "Device",
    "DeviceLost",
    "DisconnectPolicyName",
    "Event",
    "HiresFix",
    "Image",
    "ImageFormatName",
    "ImageLike",
    "InvalidOptions",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobLogFull",
    "JobLogUnavailable",
    "JobOptions",
    "JobStateName",
    "KeptJobsFull",
    "LoadFailed",
    "Loading",
    "LoadingPhaseName",
    "Lora",
    "LoraNotFound",
    "LoraSpec",
    "Model",
    "ModelNotFound",
    "ModelReplica",
    "NonFinite",
    "NotFound",
    "NotImplementedYet",
    "OutOfMemory",
    "OutputOptions",
    "ParameterOptions",
    "PermissionDenied",
    "Picture",
    "Plugin",
    "PluginFailed",
    "Preprocessor",
    "PreprocessorNotFound",
    "Preset",
    "PresetNotFound",
    "Preview",
    "PreviewModeName",
    "PreviewOptions",
    "PriorityName",
    "PromptSyntaxName",
    "QueueFull",
    "Queued",
    "Recipe",
    "RequestIdInUse",
    "RequestNotFound",
    "RequestTooLarge",
    "ResidencyName",
    "ResizeModeName",
    "ResourceExhausted",
    "SafetyPolicyName",
    "SafetyVerdictName",
    "Scheduler",
    "SchedulerNotFound",
    "SchedulerSpec",
    "ServerInfo",
    "ServerLimits",
    "ServerLoad",
    "ServerUnreachable",
    "ShuttingDown",
    "SigmaScheduleName",
    "SizeConditioning",
    "SlowReader",
    "Starting",
    "Step",
    "Stream",
    "Task",
    "TaskNotFound",
    "TimestepSpacingName",
    "Timings",
    "Unauthenticated",
    "Unavailable",
    "UnsupportedCombination",
    "Violation",
    "WeightsLoad",
    "read_recipe",
]

# The modules of the public names, which are imported on first use, so that `darkroom --help` does not load gRPC.
_MODULES = ("_enums", "errors", "recipes", "options", "events", "catalog", "_stream", "_aio", "_sync")


if not typing.TYPE_CHECKING:  # with it, type checkers would accept any name

    def __getattr__(name: str) -> typing.Any:
        if name == "__version__":
            return importlib.import_module("importlib.metadata").version("darkroom-diffusion")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for module in _MODULES:
            found = vars(importlib.import_module(f"{__name__}.{module}")).get(name)
            if found is not None:
                globals()[name] = found
                return found
        raise AttributeError(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
