"""The server's commands of `darkroom`."""
