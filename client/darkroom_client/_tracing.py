"""The trace that a call belongs to, where the application traces with OpenTelemetry."""

import sys


def trace_headers() -> tuple[tuple[str, str], ...]:
    """What tells the server of the current span, as gRPC's metadata; nothing without one.

    A span can be current only in a process that has imported OpenTelemetry; others need not have it.
    """
    if "opentelemetry.trace" not in sys.modules:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items())
