"""The Darkroom server."""
