import time
import uuid

from core.ids import new_request_id


def test_a_request_id_is_a_uuid_of_version_7() -> None:
    parsed = uuid.UUID(new_request_id())
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122


def test_request_ids_sort_by_time_and_are_unique() -> None:
    before = time.time_ns() // 1_000_000
    ids = [new_request_id() for _ in range(10_000)]
    after = time.time_ns() // 1_000_000
    assert len(set(ids)) == len(ids)
    moments = [uuid.UUID(each).int >> 80 for each in ids]
    assert moments == sorted(moments)
    assert before <= moments[0] <= moments[-1] <= after
