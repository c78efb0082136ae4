"""Ask an LLM for N yes/no questions about classes, and select Q of them."""

from .generate import (
    Generated,
    TooFewQuestionsError,
    check_class_names,
    collect,
    generate,
    go_on,
    kept,
    open_store,
    select,
)
from .llms import HubLLM, ServerLLM
from .local import LocalLLM
from .plan import Estimate, Plan, estimate
from .remote import LLM, LLMError
from .validation import Rules, fault


__all__ = [
    "Estimate",
    "Generated",
    "HubLLM",
    "LLM",
    "LLMError",
    "LocalLLM",
    "Plan",
    "Rules",
    "ServerLLM",
    "TooFewQuestionsError",
    "check_class_names",
    "collect",
    "estimate",
    "fault",
    "generate",
    "go_on",
    "kept",
    "open_store",
    "select",
]
