"""Large language models that complete a chat: behind a server (`llm.server`) or on this machine (`llm.local`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol


Message = dict[str, Any]  # {"role": ..., "content": a text or OpenAI's list of parts}

SPARE_TOKENS = 4096  # for a reasoning model behind a server to think


class LLMError(OSError):
    """What keeps an LLM from answering, in one sentence with its remedy."""


class LLM(Protocol):
    """Whatever completes a chat.

    Attributes:
        name: what to call it in files and messages; no path, no secret.
        spare_tokens: how many tokens it may write beside the answer proper, for instance while it thinks.
    """

    name: str
    spare_tokens: int

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any] | None = None, max_tokens: int = 1024, seed: int = 0
    ) -> str:
        """The assistant's next turn, "" where it has nothing to say.

        Args:
            messages: the turns so far, {"role": ..., "content": ...}.
            schema: a JSON schema for the answer; followed only where the LLM can be made to.
            max_tokens: where to cut the answer.
            seed: another one gives another answer.

        Raises:
            LLMError: there is no answer.
        """
        ...
