"""How servers are asked, one file a dialect; the first that a server speaks is taken."""

from .base import Answer, Dialect, UnusableAnswerError, Words
from .chat_ids import ChatIds
from .chat_topk import ChatTopK
from .decisions import Decisions
from .systemone import SystemOne


DIALECTS: dict[str, type[Dialect]] = {kind.name: kind for kind in (ChatIds, ChatTopK, SystemOne, Decisions)}

__all__ = ["DIALECTS", "Answer", "Dialect", "UnusableAnswerError", "Words"]
