"""The gRPC edge: services, messages, statuses. With `app`, the only package that touches protobuf and gRPC."""
