"""A cluster: edges answer calls, and replicas do the jobs. See `backend` for what an edge does beside forwarding.

A replica (`replica`) is a whole Darkroom without its port, an actor of Ray Serve (`deployment`); it takes serialized
requests, and yields serialized messages. The edge (`edge`) is the gRPC server; it imports no torch. Between the two
stands `ray_replicas`, the only module beside `deployment` that speaks to Ray.
"""
