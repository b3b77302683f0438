"""Option values as wire messages and back."""

from protos.upscaler.v1 import upscaler_pb2 as pb

Value = bool | int | float | str


def option_message(value: Value) -> pb.OptionValue:
    """A typed value as its wire message."""
    if isinstance(value, bool):
        return pb.OptionValue(boolean=value)
    if isinstance(value, int):
        return pb.OptionValue(integer=value)
    if isinstance(value, float):
        return pb.OptionValue(number=value)
    return pb.OptionValue(text=value)


def option_value(message: pb.OptionValue) -> Value | None:
    """The value in a wire message; None if it holds none."""
    kind = message.WhichOneof("kind")
    value: Value | None = getattr(message, kind) if kind else None
    return value
