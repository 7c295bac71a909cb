"""Errors in the OpenAI images API's shape, with its names of fields."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.rpc import error_details_pb2

from darkroom_plugins.quoting import printable
from darkroom_server.api.validation.violations import problem_of

if TYPE_CHECKING:
    from pydantic import ValidationError

    from darkroom_server.api.in_process import Aborted

_Code = grpc.StatusCode
STATUSES = {
    _Code.INVALID_ARGUMENT: 400,
    _Code.FAILED_PRECONDITION: 400,
    _Code.UNAUTHENTICATED: 401,
    _Code.PERMISSION_DENIED: 403,
    _Code.NOT_FOUND: 404,
    _Code.ALREADY_EXISTS: 409,
    _Code.RESOURCE_EXHAUSTED: 429,
    _Code.CANCELLED: 499,
    _Code.UNIMPLEMENTED: 501,
    _Code.UNAVAILABLE: 503,
    _Code.DEADLINE_EXCEEDED: 504,
}
REASON_STATUSES = {"REQUEST_TOO_LARGE": 413, "OUT_OF_MEMORY": 507}
MAX_MESSAGE = 4000  # characters
PARAMS = {  # of this API, by ours
    "parameters.prompt": "prompt",
    "parameters.model": "model",
    "parameters.num_images": "n",
    "parameters.width": "size",
    "parameters.height": "size",
    "parameters.negative_prompt": "negative_prompt",
    "parameters.seed": "seed",
    "parameters.num_inference_steps": "steps",
    "parameters.guidance_scale": "guidance",
    "parameters.scheduler.name": "scheduler",
    "output.quality": "output_compression",
    "output.format": "output_format",
    "image": "image",
    "inpaint.mask": "mask",
    "inpaint.strength": "strength",
    "image_to_image.strength": "strength",
}


@dataclass
class ApiError(Exception):
    """An error of this API; `param` names the field, `retry_after` is in seconds, None if to try again is no use."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: float | None = None

    def __post_init__(self) -> None:
        """JSON may have text that is no Unicode, which no answer can have."""
        self.message = printable(self.message, MAX_MESSAGE)
        self.param = printable(self.param, MAX_MESSAGE) if self.param is not None else None

    @property
    def body(self) -> dict[str, Any]:
        kind = "rate_limit_error" if self.status == 429 else "server_error"
        kind = "invalid_request_error" if self.status < 429 else kind
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """`x-should-retry` is read by OpenAI's clients, which else try again after any error of the server."""
        if self.retry_after is None:
            return {"x-should-retry": "false"}
        return {"x-should-retry": "true", "retry-after": str(math.ceil(self.retry_after))}


def from_status(error: Aborted) -> ApiError:
    """The error of a call."""
    reason, retry_after, violations = "", None, []
    for detail in error.details:
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            violations = [(param_of(each.field), each.description) for each in bad.field_violations]
        elif detail.Unpack(retry):
            retry_after = retry.retry_delay.ToTimedelta().total_seconds()
    status = REASON_STATUSES.get(reason) or STATUSES.get(error.code, 500)
    message = "; ".join(f"{param}: {words}" for param, words in violations) or error.message
    code = reason.lower() or ("invalid_api_key" if status == 401 else error.code.name.lower())
    return ApiError(status, message, code, violations[0][0] if violations else None, retry_after)


def from_fields(error: ValidationError) -> ApiError:
    """The error of fields that are not as this API has them: all of them, the first by name."""
    found = list(_violations(error))
    unknown = all(each["type"] == "extra_forbidden" for each in error.errors())
    words = "; ".join(f"{param}: {words}" for param, words in found)
    return ApiError(400, words, "unknown_parameter" if unknown else "invalid_request", found[0][0])


def invalid(param: str, words: str) -> ApiError:
    """A field that is wrong."""
    return ApiError(400, f"{param}: {words}", "invalid_request", param)


def param_of(path: str) -> str:
    """The field of this API that a path of ours comes from; others come from the field `darkroom`."""
    return PARAMS.get(path) or ("partial_images" if re.match(r"preview\b", path) else f"darkroom.{path}")


def _violations(error: ValidationError) -> Iterator[tuple[str, str]]:
    for each in error.errors():
        words = {"missing": "must be set", "extra_forbidden": "is unknown, or not offered here"}.get(each["type"])
        yield ".".join(map(str, each["loc"])) or "the request", words or problem_of(each)
