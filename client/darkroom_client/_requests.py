"""Builds the requests of `ImageService`."""

import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_client._messages import fill
from darkroom_client.errors import InvalidRequest, Violation
from darkroom_client.options import ImageLike, JobOptions, ParameterOptions
from darkroom_client.recipes import Recipe

_JOB_FIELDS = ("preview", "output", "disconnect_policy", "deterministic")
_Request = TypeVar("_Request", image_service_pb2.GenerateRequest, image_service_pb2.EditRequest)


def generate(prompt: str | None, options: JobOptions) -> image_service_pb2.GenerateRequest:
    """The request of `generate`.

    :raises InvalidRequest: naming all values that do not fit into the request.
    """
    request = image_service_pb2.GenerateRequest()
    return _checked(request, _fill_job(request, prompt, options))


def edit(
    image: ImageLike, prompt: str | None, change: Mapping[str, Any], options: JobOptions
) -> image_service_pb2.EditRequest:
    """The request of `edit`; `change` holds its own fields, `image_to_image`, `inpaint` or `outpaint` among them.

    :raises InvalidRequest: naming all values that do not fit into the request.
    """
    request = image_service_pb2.EditRequest()
    violations = _fill_job(request, prompt, options)
    return _checked(request, violations + fill(request, {"image": image, **change}, ""))


def preprocess(
    image: ImageLike, preprocessor: str, options: Mapping[str, Any] | None, image_format: str | None
) -> image_service_pb2.PreprocessRequest:
    """The request of `preprocess`.

    :raises InvalidRequest: naming all values that do not fit into the request.
    """
    request = image_service_pb2.PreprocessRequest(request_id=new_request_id(), preprocessor=preprocessor)
    values = {"image": image, "preprocessor_options": options, "format": image_format}
    return _checked(request, fill(request, values, ""))


def new_request_id() -> str:
    """An id for a job, so that it can be named before the server answered."""
    return uuid.uuid4().hex


def _fill_job(request: Any, prompt: str | None, options: JobOptions) -> list[Violation]:
    unknown = sorted(options.keys() - JobOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown keyword arguments: {', '.join(unknown)}")
    given: dict[str, Any] = dict(options)
    _start_from(request, given.get("parameters"))
    request.request_id = given.get("request_id") or new_request_id()
    wanted = {"prompt": prompt} | {name: given.get(name) for name in ParameterOptions.__annotations__}
    violations = fill(request.parameters, wanted, "parameters")
    return violations + fill(request, {name: given.get(name) for name in _JOB_FIELDS}, "")


def _start_from(request: Any, base: parameters_pb2.Parameters | Recipe | Mapping[str, Any] | None) -> None:
    """Sets what `parameters=` gave: a message, a recipe, or a recipe's JSON object."""
    if base is None:
        return
    if isinstance(base, Mapping):
        base = Recipe.from_dict(base)
    if isinstance(base, Recipe):
        request.deterministic = base.deterministic
        base = base.parameters
    request.parameters.CopyFrom(base)


_Any = TypeVar("_Any")


def _checked(request: _Any, violations: list[Violation]) -> _Any:
    if violations:
        raise InvalidRequest("the request is not valid", reason="INVALID_REQUEST", violations=violations)
    return request
