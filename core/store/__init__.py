"""What must last, in SQLite or PostgreSQL. Importing this imports SQLAlchemy, so the request path does it late."""

from core.store.alerts import AlertRepository, Delivery, DeliveryCounts, Raised
from core.store.audit import AuditPage, AuditQuery, AuditRepository
from core.store.budgets import Adjustment, AdjustmentKind, BudgetRepository, Pause, SpendPage
from core.store.engine import Store, open_store
from core.store.errors import RecordRefused
from core.store.instances import Instance, InstanceRepository
from core.store.lock import StoreLock, acquire_single_writer_lock
from core.store.overlay import OverlayRepository, OverlayVersion
from core.store.url import StoreUrl
from core.store.usage import UsageRepository, Written

__all__ = [
    "Adjustment",
    "AdjustmentKind",
    "AlertRepository",
    "AuditPage",
    "AuditQuery",
    "AuditRepository",
    "BudgetRepository",
    "Delivery",
    "DeliveryCounts",
    "Instance",
    "InstanceRepository",
    "OverlayRepository",
    "OverlayVersion",
    "Pause",
    "Raised",
    "RecordRefused",
    "SpendPage",
    "Store",
    "StoreLock",
    "StoreUrl",
    "UsageRepository",
    "Written",
    "acquire_single_writer_lock",
    "open_store",
]
