"""Which tokens of the served model say yes and no: by its tokenizer, here or at the server."""

from __future__ import annotations

import json
import os
from typing import Any

from ...llm import LLMError
from ...llm.async_client import RequestFailedError
from .dialects import Words
from .endpoint import Endpoint


BEFORE = ("", " ", "\n")  # a word begins a text, follows a space, or follows something that is no space


def of_tokenizer(name: str, answer_tokens: tuple[str, str] | None, revision: str | None = None) -> tuple[Words, Any]:
    """Exactly what the local teacher reads, from a tokenizer's folder or Hub id; and the tokenizer."""
    from transformers import AutoTokenizer

    from ..mllm.answers import answer_token_ids

    if os.sep in name.rstrip(os.sep) and name.count("/") != 1 and not os.path.isdir(name):
        raise FileNotFoundError(f"There is no folder {name}: pass --teacher_tokenizer with a folder or a Hub id.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"The tokenizer {name} cannot be loaded ({reason}): pass --teacher_tokenizer with the folder or the Hub "
            "id of the served model."
        ) from error
    return Words(*answer_token_ids(tokenizer, answer_tokens), answer_tokens), tokenizer


async def of_server(endpoint: Endpoint, answer_tokens: tuple[str, str] | None) -> Words | None:
    """What the server's own tokenizer makes of the spellings; None where it has no /tokenize."""
    try:
        newline = await tokens(endpoint, "\n")
        sides = []
        for word in answer_tokens or ("yes", "no"):
            cases = [word] if answer_tokens else [word, word.capitalize(), word.upper()]
            ids: dict[int, str] = {}
            for case in cases:
                for before in BEFORE:
                    found = await tokens(endpoint, before + case)
                    if before == "\n":
                        found = found[len(newline) :] if found[: len(newline)] == newline else []
                    if len(found) == 1:
                        ids.setdefault(found[0], (before + case).replace("\n", ""))
            spellings = _by_spelling(ids)
            sides.append(dict([next(iter(spellings.items()))]) if answer_tokens and spellings else spellings)
    except (RequestFailedError, LLMError, NoTokensError):
        return None
    return Words(*sides, answer_tokens) if all(sides) else None


def _by_spelling(ids: dict[int, str]) -> dict[str, int]:
    """Spelling -> id; where two ids have one spelling, with a space and without, the second is told apart."""
    spellings: dict[str, int] = {}
    for token, spelling in ids.items():
        while spelling in spellings:
            spelling = f"\u2581{spelling}"
        spellings[spelling] = token
    return spellings


class NoTokensError(ValueError):
    """No tokens came back."""


async def tokens(endpoint: Endpoint, text: str) -> list[int]:
    """What the server's tokenizer makes of a text; vLLM, SGLang and llama.cpp have it beside /v1."""
    body = {"model": endpoint.model, "prompt": text, "content": text, "add_special_tokens": False}
    answer = (await endpoint.server.post("//tokenize", json.dumps(body).encode(), retries=1)).get("tokens")
    if not isinstance(answer, list) or not all(type(token) is int for token in answer):
        raise NoTokensError
    return answer


async def differs(endpoint: Endpoint, tokenizer: Any) -> str | None:
    """A text of which the server's tokenizer makes other tokens than this one; None where all agree or it has none."""
    for text in ("yes", " No", "Answer with yes or no. Is there a bird?"):
        try:
            there = await tokens(endpoint, text)
        except (RequestFailedError, LLMError, NoTokensError):
            return None
        if there != tokenizer.encode(text, add_special_tokens=False):
            return text
    return None
