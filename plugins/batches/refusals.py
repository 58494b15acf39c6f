"""What a client is told about a file or batch that it cannot use."""

from core.errors import NotFound


def no_file(file_id: str) -> NotFound:
    return NotFound(
        f"There is no file {file_id[:200]!r} of yours; files of batches have to be uploaded through this proxy."
    )


def no_batch(batch_id: str) -> NotFound:
    return NotFound(f"There is no batch {batch_id[:200]!r} of yours.")
