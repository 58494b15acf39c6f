"""The process that upgrades a store (`Store.upgrade`): told its URL by stdin, it prints what went wrong."""

import asyncio
import sys

from core.errors import StoreError
from core.store.engine import open_store


async def _upgrade(url: str) -> None:
    store = open_store(url)
    try:
        await store.upgrade()
    finally:
        await store.close()


def main() -> int:
    try:
        asyncio.run(_upgrade(sys.stdin.read()))
    except StoreError as error:
        sys.stdout.write(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
