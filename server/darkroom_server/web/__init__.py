"""HTTP's doors to the API: Connect, gRPC-Web and the OpenAI images API, by in-process calls of the gRPC handlers."""
