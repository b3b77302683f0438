"""`python -m backends.serve NAME`: serve one of the product's backends in this process."""

import argparse
import logging
import os
import sys
from functools import partial
from pathlib import Path

from backends.registry import ENTRIES
from harness.errors import one_line


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m backends.serve")
    parser.add_argument("name", choices=sorted(ENTRIES))
    parser.add_argument("--address", default="127.0.0.1:0", help="host:port; port 0 chooses a free one")
    parser.add_argument("--handshake", type=Path, help="file that receives host:port once the server is ready")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the backend")
    arguments = parser.parse_args()
    settings = dict(text.partition("=")[::2] for text in arguments.set)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read on import: gRPC would log an occupied port itself
    from backends.server import AddressInUse, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        serve(partial(ENTRIES[arguments.name].load(), **settings), arguments.address, arguments.handshake)
    except (AddressInUse, OSError, TypeError, ValueError, RuntimeError) as error:
        print(f"error: {arguments.name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
