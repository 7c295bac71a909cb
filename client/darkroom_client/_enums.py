"""The names of the API's enum values, in one spelling: lower case with hyphens, such as "latent-rgb".

Input may be in any case, with hyphens or underscores, or the proto's full name. Imports neither protobuf nor gRPC, so
that `darkroom --help` lists the names and stays fast.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from darkroom_client._text import did_you_mean

AssetChangeKindName: TypeAlias = Literal["added", "removed", "waiting", "refused"]
DisconnectPolicyName: TypeAlias = Literal["cancel", "keep"]
ImageFormatName: TypeAlias = Literal["png", "jpeg", "webp"]
JobStateName: TypeAlias = Literal["queued", "running", "completed", "failed", "cancelled"]
LoadingPhaseName: TypeAlias = Literal["download", "read"]
PreviewModeName: TypeAlias = Literal["off", "latent-rgb", "tiny-vae", "full-vae"]
PriorityName: TypeAlias = Literal["low", "normal", "high"]
PromptSyntaxName: TypeAlias = Literal["plain", "weighted"]
ResidencyName: TypeAlias = Literal["absent", "loading", "parked", "resident"]
ResizeModeName: TypeAlias = Literal["crop", "pad", "stretch"]
SafetyPolicyName: TypeAlias = Literal["off", "flag", "block"]
SafetyVerdictName: TypeAlias = Literal["passed", "flagged", "blocked"]
SigmaScheduleName: TypeAlias = Literal["default", "karras", "exponential", "beta"]
TimestepSpacingName: TypeAlias = Literal["linspace", "leading", "trailing"]
UpscalerName: TypeAlias = Literal[
    "latent-nearest", "latent-bilinear", "latent-bicubic", "pixel-bicubic", "pixel-lanczos"
]


def canonical(name: str) -> str:
    """The one spelling of a name: "latent-rgb" for "latent_rgb" and "LATENT_RGB"."""
    return name.lower().replace("_", "-")


def one_of(choices: Sequence[str], name: str) -> str:
    """The choice that `name` spells.

    :raises ValueError: listing the choices, when it spells none of them.
    """
    if canonical(name) not in choices:
        raise _unknown(name, choices)
    return canonical(name)


def value_names(enum: Any) -> dict[int, str]:
    """The names of an enum descriptor's values by number, without the unset value 0."""
    return {each.number: _short(each.name, enum) for each in enum.values if each.number}


def value_number(enum: Any, name: str) -> int:
    """The number of an enum descriptor's value: 2 for "karras" or "SIGMA_SCHEDULE_KARRAS" of SigmaSchedule.

    :raises ValueError: listing the names, when none is `name`.
    """
    for value in enum.values:
        if _short(value.name, enum) == _short(name, enum):
            return int(value.number)
    raise _unknown(name, value_names(enum).values())


def field_names(message: Any, field: str) -> Any:
    """The name of a message's enum field: "full-vae" for PREVIEW_MODE_FULL_VAE; a list of names for a repeated field.

    Unset values and numbers that this client does not know are None, or left out of the list.
    """
    names = value_names(message.DESCRIPTOR.fields_by_name[field].enum_type)
    value = getattr(message, field)
    return names.get(value) if isinstance(value, int) else [names[each] for each in value if each in names]


def _short(name: str, enum: Any) -> str:
    """A value's name without the enum's prefix: "full-vae" for PREVIEW_MODE_FULL_VAE."""
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return canonical(name).removeprefix(canonical(prefix))


def _unknown(name: str, choices: Iterable[str]) -> ValueError:
    known = list(choices)
    return ValueError(f"must be one of {', '.join(known)}, not {name!r}{did_you_mean(canonical(name), known)}")
