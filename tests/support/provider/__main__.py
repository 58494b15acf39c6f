"""`python -m tests.support.provider --port 0`: the fake provider until it is told to stop."""

from __future__ import annotations

import argparse

from tests.support.processes import free_port
from tests.support.provider import ProviderApp, serve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--totals-only", action="store_true", help="keep sums instead of every attempt")
    arguments = parser.parse_args()
    port = arguments.port or free_port()
    print(f"http://127.0.0.1:{port}/v1", flush=True)
    serve(ProviderApp(itemised=not arguments.totals_only), port).run()


if __name__ == "__main__":
    main()
