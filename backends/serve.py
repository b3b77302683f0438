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
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate of this server: calls are encrypted")
    parser.add_argument("--tls-key", type=Path, help="its unencrypted PEM key")
    parser.add_argument("--tls-client-ca", type=Path, help="PEM authorities: clients need a certificate of theirs")
    parser.add_argument("--token-file", type=Path, help="lines of TOKEN [EXPIRY]: calls need one of these tokens")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the backend")
    arguments = parser.parse_args()
    settings = dict(text.partition("=")[::2] for text in arguments.set)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # read on import: gRPC would log an occupied port itself
    from backends.access import read_access
    from backends.server import AddressInUse, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    try:
        access = read_access(
            arguments.address,
            cert=arguments.tls_cert,
            key=arguments.tls_key,
            client_ca=arguments.tls_client_ca,
            token_file=arguments.token_file,
        )
        serve(partial(ENTRIES[arguments.name].load(), **settings), arguments.address, arguments.handshake, access)
    except (AddressInUse, OSError, TypeError, ValueError, RuntimeError) as error:
        print(f"error: {arguments.name}: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
