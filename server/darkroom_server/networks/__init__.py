"""Execution of networks: placement and offload, compiled, traced and recorded forwards."""
