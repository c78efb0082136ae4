"""Keys: from environment variables alone, so that none stands on a command line or in a file."""

from __future__ import annotations

import os


def key_in(variable: str | None, option: str) -> str | None:
    """The key in an environment variable, None where no variable is named; `option` is what names it, for messages."""
    if not variable:
        return None
    if key := os.environ.get(variable, "").strip():
        return key
    is_name = variable.replace("_", "a").isalnum() and len(variable) <= 30 and not variable.startswith(("hf_", "sk"))
    shown = variable if is_name else "***"  # somebody passed the key itself
    raise ValueError(
        f"There is no key in the environment variable {shown}: set it, or pass the name of another by {option}."
    )
