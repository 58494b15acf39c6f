"""What must last, in SQLite or PostgreSQL. Importing this imports SQLAlchemy, so the request path does it late."""

from core.store.alerts import AlertRepository, Delivery, DeliveryCounts, Raised
from core.store.allocations import AllocationRepository, Closure, StoredRanges
from core.store.assignments import UnitTotals, unit_totals
from core.store.audit import AuditPage, AuditQuery, AuditRepository
from core.store.budgets import Adjustment, AdjustmentKind, BudgetRepository, Pause, SpendPage
from core.store.engine import Store, open_store
from core.store.errors import RecordRefused
from core.store.feedback import Feedback, FeedbackRepository, Giver, Received
from core.store.instances import Instance, InstanceRepository
from core.store.lock import StoreLock, acquire_single_writer_lock
from core.store.overlay import OverlayRepository, OverlayVersion
from core.store.routing_versions import RoutingVersionRepository
from core.store.url import StoreUrl
from core.store.usage import REPLAY_COLUMNS, UsageRepository, Written

__all__ = [
    "REPLAY_COLUMNS",
    "Adjustment",
    "AdjustmentKind",
    "AlertRepository",
    "AllocationRepository",
    "AuditPage",
    "AuditQuery",
    "AuditRepository",
    "BudgetRepository",
    "Closure",
    "Delivery",
    "DeliveryCounts",
    "Feedback",
    "FeedbackRepository",
    "Giver",
    "Instance",
    "InstanceRepository",
    "OverlayRepository",
    "OverlayVersion",
    "Pause",
    "Raised",
    "Received",
    "RecordRefused",
    "RoutingVersionRepository",
    "SpendPage",
    "Store",
    "StoreLock",
    "StoreUrl",
    "StoredRanges",
    "UnitTotals",
    "UsageRepository",
    "Written",
    "acquire_single_writer_lock",
    "open_store",
    "unit_totals",
]
