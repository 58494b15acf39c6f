"""What a client is told about a file or batch that it cannot use."""

from typing import ClassVar

from core.errors import RequestRefused


class NotFound(RequestRefused):
    """There is no such file or batch, or it is somebody else's, which is not told apart."""

    status: ClassVar[int] = 404
    code: ClassVar[str] = "not_found"


class Unsupported(RequestRefused):
    """Something about the request that cannot be paid for in advance."""

    code: ClassVar[str] = "not_supported"


def no_file(file_id: str) -> NotFound:
    return NotFound(
        f"There is no file {file_id[:200]!r} of yours; files of batches have to be uploaded through this proxy."
    )


def no_batch(batch_id: str) -> NotFound:
    return NotFound(f"There is no batch {batch_id[:200]!r} of yours.")
