"""Builds the requests of `ImageService`."""

import uuid
from collections.abc import Mapping
from typing import Any, TypeVar

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_client._messages import fill
from darkroom_client.errors import InvalidRequest, Violation
from darkroom_client.options import ImageLike, JobOptions, ParameterOptions
from darkroom_client.recipes import Recipe

_JOB_FIELDS = ("preview", "output", "disconnect_policy", "deterministic", "priority")
_RequestT = TypeVar("_RequestT")


def generate(prompt: str | None, options: JobOptions) -> image_service_pb2.GenerateRequest:
    """The request of `generate`.

    :raises InvalidRequest: with a violation for each value that the request cannot hold.
    """
    request = image_service_pb2.GenerateRequest()
    return _checked(request, _fill_job(request, prompt, options))


def edit(
    image: ImageLike, prompt: str | None, edit_fields: Mapping[str, Any], options: JobOptions
) -> image_service_pb2.EditRequest:
    """The request of `edit`. `edit_fields`: EditRequest's own, such as `inpaint` and `resize_mode`.

    :raises InvalidRequest: with a violation for each value that the request cannot hold.
    """
    request = image_service_pb2.EditRequest()
    violations = _fill_job(request, prompt, options)
    return _checked(request, violations + fill(request, {"image": image, **edit_fields}, ""))


def preprocess(
    image: ImageLike, preprocessor: str, options: Mapping[str, Any] | None, image_format: str | None
) -> image_service_pb2.PreprocessRequest:
    """The request of `preprocess`.

    :raises InvalidRequest: with a violation for each value that the request cannot hold.
    """
    request = image_service_pb2.PreprocessRequest(request_id=new_request_id(), preprocessor=preprocessor)
    values = {"image": image, "preprocessor_options": options, "format": image_format}
    return _checked(request, fill(request, values, ""))


def new_request_id() -> str:
    """A random job id, made here so that the job can be cancelled before the server answers."""
    return uuid.uuid4().hex


def _fill_job(request: Any, prompt: str | None, options: JobOptions) -> list[Violation]:
    unknown = sorted(options.keys() - JobOptions.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown keyword arguments: {', '.join(unknown)}")
    values: dict[str, Any] = dict(options)
    _set_base(request, values.get("parameters"))
    request.request_id = values.get("request_id") or new_request_id()
    parameters = {"prompt": prompt} | {name: values.get(name) for name in ParameterOptions.__annotations__}
    violations = fill(request.parameters, parameters, "parameters")
    if values.get("keep"):
        values["disconnect_policy"] = "keep"
    return violations + fill(request, {name: values.get(name) for name in _JOB_FIELDS}, "")


def _set_base(request: Any, base: parameters_pb2.Parameters | Recipe | Mapping[str, Any] | None) -> None:
    """Sets the base parameters: a message, a recipe, or a recipe's JSON object."""
    if base is None:
        return
    if isinstance(base, Mapping):
        base = Recipe.from_dict(base)
    if isinstance(base, Recipe):
        request.deterministic = base.deterministic
        base = base.parameters
    request.parameters.CopyFrom(base)


def _checked(request: _RequestT, violations: list[Violation]) -> _RequestT:
    """The request, if it has no violations."""
    if violations:
        raise InvalidRequest("the request is not valid", reason="INVALID_REQUEST", violations=violations)
    return request
