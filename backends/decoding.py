"""How a server reads what is no message at all."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError


class Lenient(grpc.ServerInterceptor):
    """Reads bytes that are no message as an empty one, which validation refuses with INVALID_ARGUMENT.

    gRPC for Python itself answers INTERNAL, and keeps about 16 KB of each such call for as long as it runs.
    """

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401 - a handler, as gRPC makes it
        """Make the handler's way of reading a message one that cannot fail."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        read = handler.request_deserializer

        def lenient(data: bytes) -> Any:  # noqa: ANN401 - whatever message the call takes
            try:
                return read(data)
            except DecodeError:
                return read(b"")

        return handler._replace(request_deserializer=lenient)
