"""The Preprocess RPC: a control map from a picture."""

from __future__ import annotations

from typing import Any

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_plugins import calls
from darkroom_server.api import messages
from darkroom_server.api.validation.conditions import preprocessor_options
from darkroom_server.api.validation.edit import decoded
from darkroom_server.api.validation.request import check_request_id
from darkroom_server.api.validation.violations import Findings
from darkroom_server.jobs.events import ControlMade
from darkroom_server.models.catalog import Catalog


def preprocess(message: image_service_pb2.PreprocessRequest, catalog: Catalog) -> list[dict[str, Any]]:
    """The messages of the map, which has the picture's size.

    :raises RequestRefused: with all violations
    :raises PluginFailed: the preprocessor failed
    """
    findings = Findings()
    check_request_id(message.request_id, findings)
    if not message.preprocessor:
        findings.invalid("preprocessor", "must be set")
    entries = catalog.plugins.preprocessors
    options = preprocessor_options("", message.preprocessor, message.preprocessor_options, entries, findings)
    format: Any = findings.enum("format", parameters_pb2.ImageFormat, message.format) or "png"
    pixels = decoded("image", message.image, "image", catalog.uploads, findings)
    findings.refuse()
    assert pixels is not None
    made = calls.preprocess(entries[message.preprocessor], pixels, options)
    event = ControlMade(0, made, message.preprocessor, format)
    return list(messages.control_image(event, catalog.limits.chunk_bytes))
