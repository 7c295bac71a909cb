"""The commands of `darkroom` that come with the server."""
