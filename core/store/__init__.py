"""What must last, in SQLite or PostgreSQL. Importing this imports SQLAlchemy, so the request path does it late."""

from core.store.audit import AuditPage, AuditQuery, AuditRepository
from core.store.engine import Store, open_store
from core.store.errors import RecordRefused
from core.store.instances import Instance, InstanceRepository
from core.store.lock import StoreLock, acquire_single_writer_lock
from core.store.url import StoreUrl
from core.store.usage import UsageRepository, Written

__all__ = [
    "AuditPage",
    "AuditQuery",
    "AuditRepository",
    "Instance",
    "InstanceRepository",
    "RecordRefused",
    "Store",
    "StoreLock",
    "StoreUrl",
    "UsageRepository",
    "Written",
    "acquire_single_writer_lock",
    "open_store",
]
