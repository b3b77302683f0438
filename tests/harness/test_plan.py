"""Plans and backend specifications."""

import pytest

from harness.errors import ConfigError
from harness.plan import parse_backend


def test_backend_text_is_read() -> None:
    """NAME, address, options and the label are told apart."""
    spec = parse_backend("sr3@localhost:50051,steps=4,name=sr3 fast")
    assert (spec.name, spec.address, spec.label, spec.options) == (
        "sr3",
        "localhost:50051",
        "sr3 fast",
        {"steps": "4"},
    )
    assert parse_backend("bicubic").label == "bicubic"


@pytest.mark.parametrize("text", ["sr3,steps", "sr3,steps=1,steps=2", "sr3,=1", ",", "sr3,name=<script>", "sr3,name="])
def test_wrong_backend_text_is_refused(text: str) -> None:
    """What is not NAME[@ADDRESS][,option=value]... is a ConfigError."""
    with pytest.raises(ConfigError, match="backend"):
        parse_backend(text)
