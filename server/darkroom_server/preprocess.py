"""The Preprocess RPC's work: a control map from a picture."""

from __future__ import annotations

from typing import Any

from darkroom.v1 import image_service_pb2, parameters_pb2
from darkroom_server import responses
from darkroom_server.catalog import Catalog
from darkroom_server.check_conditions import preprocessor_options
from darkroom_server.check_edit import decoded
from darkroom_server.events import ControlMade
from darkroom_server.findings import Findings
from darkroom_server.inputs import decode_image
from darkroom_server.plan import run_preprocessor
from darkroom_server.recovery import known
from darkroom_server.validate import check_request_id


def preprocess(message: image_service_pb2.PreprocessRequest, catalog: Catalog) -> list[dict[str, Any]]:
    """The messages of the map, of the picture's own size.

    :raises RequestRefused: with everything that is wrong with the request
    :raises PluginFailed: the preprocessor failed
    """
    findings = Findings()
    check_request_id(message.request_id, findings)
    if not message.preprocessor:
        findings.invalid("preprocessor", "must be set")
    entries = catalog.plugins.preprocessors
    options = preprocessor_options("", message.preprocessor, message.preprocessor_options, entries, findings)
    format: Any = findings.enum("format", parameters_pb2.ImageFormat, message.format) or "png"
    pixels = decoded("image", message.image, decode_image, catalog.limits, findings)
    findings.refuse()
    try:
        assert pixels is not None
        made = run_preprocessor(catalog.plugins, message.preprocessor, pixels, options)
        event = ControlMade(0, made, message.preprocessor, format)
        return list(responses.control_image(event, catalog.limits.chunk_bytes))
    except Exception as error:
        raise known(error) from None
