"""Execution of networks: placement and offload, compiled and traced forwards."""
