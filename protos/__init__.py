"""The wire contract `upscaler.v1`, its generated stubs, and the limits that both sides share."""

SERVICE = "upscaler.v1.UpscalerService"
"""Full name of the service, as the health service knows it."""

MAX_MESSAGE_BYTES = 64 * 2**20
"""Largest message that client and server accept."""

CHUNK_BYTES = 2**20
"""Size of a chunk of `UpscaleStream`, and the pixel volume above which a client streams."""

MESSAGE_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]
"""Channel and server options that set the limit."""
