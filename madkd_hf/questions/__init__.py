"""Ask an LLM for N yes/no questions about classes, and select Q of them."""

from .generate import (
    Generated,
    TooFewQuestionsError,
    check_class_names,
    collect,
    collect_and_select,
    generate,
    open_store,
    saved_questions,
    select,
)
from .plan import Estimate, Plan, estimate
from .store import MANIFEST, Store
from .validation import Rules, fault


__all__ = [
    "MANIFEST",
    "Estimate",
    "Generated",
    "Plan",
    "Rules",
    "Store",
    "TooFewQuestionsError",
    "check_class_names",
    "collect",
    "estimate",
    "fault",
    "generate",
    "collect_and_select",
    "open_store",
    "saved_questions",
    "select",
]
