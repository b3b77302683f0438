"""The upscalers: each a class with one method, served over gRPC by `backends.server`."""
