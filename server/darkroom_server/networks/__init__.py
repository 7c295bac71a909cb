"""How networks run: placement and offload, compiled and traced forwards."""
