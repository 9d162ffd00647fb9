"""The server: protocol, batching, models and versions, HTTP and gRPC. Never torch."""
