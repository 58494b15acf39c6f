"""What budgets are made of, for everything that keeps, moves or shows money."""

from core.budgets.account import Account, Balance
from core.budgets.catalog import Applying, BudgetTerms, Catalog, Charge
from core.budgets.coverage import Coverage, Per
from core.budgets.periods import Calendar, Period

__all__ = [
    "Account",
    "Applying",
    "Balance",
    "BudgetTerms",
    "Calendar",
    "Catalog",
    "Charge",
    "Coverage",
    "Per",
    "Period",
]
