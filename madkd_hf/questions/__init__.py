"""Ask an LLM for N yes/no questions about classes, and select Q of them."""

from .generate import Generated, TooFewQuestionsError, check_class_names, generate, open_store, saved_questions
from .plan import Plan, estimate
from .store import MANIFEST, Store
from .validation import Rules, fault


__all__ = [
    "MANIFEST",
    "Generated",
    "Plan",
    "Rules",
    "Store",
    "TooFewQuestionsError",
    "check_class_names",
    "estimate",
    "fault",
    "generate",
    "open_store",
    "saved_questions",
]
