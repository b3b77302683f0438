"""Every error that the harness raises on purpose; each message says what, where, and what to do, in one line.

HarnessError
|-- BackendError       a backend failed; costs its own cases, not the run
|   |-- BadRequest         it refused the request
|   |-- Unavailable        it is not there (never started, died, connection lost)
|   |-- Unauthenticated    a certificate or a token of one side is not accepted by the other
|   |-- DeadlineExceeded   it did not answer in time
|   |-- BackendFailed      it answered with an error of its own
|   |-- Incompatible       it is not an upscaler, or lacks what the suite asks for
|   `-- ContractBroken     its answer breaks the contract (size, count, digest, finite range)
|-- ConfigError        a suite, an option or a command line is wrong
|-- DatasetError       a dataset cannot be read at all
|-- ImageError         one image cannot be used (the rest of its dataset can)
|-- WeightsError       metric weights are missing or are not what their hash says
`-- StoreError         the run folder cannot be written or does not fit the command
"""


class HarnessError(Exception):
    """Base of all errors of the harness; `str(error)` is one line for a person."""


class ConfigError(HarnessError):
    """A suite, an option or a command line is wrong."""


class DatasetError(HarnessError):
    """A dataset cannot be read at all."""


class ImageError(HarnessError):
    """One image cannot be used."""


class WeightsError(HarnessError):
    """Metric weights are missing or are not what their hash says."""


class StoreError(HarnessError):
    """The run folder cannot be written or does not fit the command."""


class BackendError(HarnessError):
    """A backend failed."""


class BadRequest(BackendError):
    """The backend refused the request."""


class Unavailable(BackendError):
    """The backend is not there: never started, died, or the connection was lost."""


class Unauthenticated(BackendError):
    """A certificate or a token of one side is not accepted by the other."""


class DeadlineExceeded(BackendError):
    """The backend did not answer in time."""


class BackendFailed(BackendError):
    """The backend answered with an error of its own."""


class Incompatible(BackendError):
    """The peer is not an upscaler, or lacks what the suite asks for."""


class ContractBroken(BackendError):
    """The backend's answer breaks the contract."""


def one_line(text: str, limit: int = 300) -> str:
    """Untrusted text as one bounded, printable line."""
    flat = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"
