"""One server: its address, how many requests it gets at once, what it says of itself, and what its errors mean."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...llm import LLMError
from ...llm.async_client import AsyncServer, RequestFailedError
from ...llm.client import is_here
from ...text import excerpt
from .limiter import Limiter


KEY_OPTION = "--teacher_key_variable"
REFUSAL = re.compile(r"content[_ ]?(policy|filter)|moderat|safety|flagged|responsible[_ ]?ai", re.IGNORECASE)
IMAGE = re.compile(r"\bimages?\b|image_url|pixels|multi-?modal|vision|entity too large|payload", re.IGNORECASE)
NO_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)
AGAIN = "run the same command again later, which goes on from the last complete shard"


@dataclass
class Usage:
    """What was sent and spent so far."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    busy: int = 0

    def add(self, response: dict[str, Any]) -> None:
        """Count the tokens of a response, as it tells them."""
        usage = response.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        self.requests += 1
        self.tokens_in += _count(usage, "prompt_tokens", "input_tokens")
        self.tokens_out += _count(usage, "completion_tokens", "output_tokens")

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


def _count(usage: dict[str, Any], *names: str) -> int:
    value = next((usage[name] for name in names if usage.get(name) is not None), 0)
    return int(value) if isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value < 1e12 else 0


@dataclass
class Endpoint:
    """A server, and what is known of it. `most` requests at once, and never more."""

    address: str
    key: str | None
    model: str
    timeout: float
    retries: int
    most: int
    plain_http: bool = False
    usage: Usage = field(default_factory=Usage)
    in_flight: int = 0
    dead: Exception | None = None  # why it gets no more requests, and
    died_at: float = 0.0  # since when
    was_away: bool = False  # whether it may have been started again, perhaps with another model
    questions: tuple[str, ...] | None = None  # the only ones that it answers, where it says so, as a student does

    def __post_init__(self) -> None:
        self.limiter = Limiter(self.most)
        self.server = AsyncServer(
            self.address, self.key, self.timeout, self.retries, "--teacher", KEY_OPTION, self._busy
        )
        if self.key and self.server.url.scheme == "http" and not is_here(self.server.url) and not self.plain_http:
            raise ValueError(
                f"{self.name} has an address without TLS (http), and the key would be readable on its way: pass an "
                "https address, or --teacher_plain_http true if the network is yours."
            )

    @property
    def name(self) -> str:
        return self.server.name

    def _busy(self, status: int | None, seconds: float | None) -> None:
        self.usage.busy += 1
        self.was_away |= status is None or status >= 500
        self.limiter.busy(seconds)

    async def post(self, path: str, content: bytes) -> dict[str, Any]:
        """A response, of which the tokens are counted."""
        response = await self.server.post(path, content)
        self.usage.add(response)
        return response

    async def described(self) -> dict[str, Any]:
        """What the server says of itself and of the model: `by`, `root`, `version`, where it does, and `models`."""
        listed, about = await self._listed(), {}
        entry = next((entry for entry in listed if entry.get("id") == self.model), {})
        if isinstance(entry.get("questions"), list):
            self.questions = tuple(filter(lambda text: isinstance(text, str), entry["questions"]))
        if isinstance(entry.get("owned_by"), str):
            about["by"] = excerpt(entry["owned_by"], 60)
        if isinstance(entry.get("root"), str):
            about["root"] = excerpt(os.path.basename(entry["root"].rstrip("/")) or entry["root"], 100)
        try:
            version = (await self.server.get("//version")).get("version")
        except (RequestFailedError, LLMError):
            version = None
        if isinstance(version, str):
            about["version"] = excerpt(version, 40)
        names = [excerpt(entry["id"], 80) for entry in listed if isinstance(entry.get("id"), str)]
        return {**about, "models": names}

    def check_questions(self, texts: Sequence[str]) -> None:
        """Raise ValueError where a server that answers certain questions only is to be asked another one."""
        if self.questions is None:
            return
        known = {" ".join(text.split()) for text in self.questions}
        if strange := [text for text in texts if " ".join(text.split()) not in known]:
            raise ValueError(
                f"{self.model} on {self.name} is a student of {len(known)} questions, and {excerpt(strange[0], 80)!r} "
                f"is none of them ({len(strange)} of {len(texts)} are not): pass --bank with those that it learnt, "
                "and no --prompt."
            )

    async def _listed(self) -> list[dict[str, Any]]:
        try:
            data = (await self.server.get("/models")).get("data")
        except (RequestFailedError, LLMError):  # the first question tells what is wrong
            return []
        return [entry for entry in data if isinstance(entry, dict)] if isinstance(data, list) else []

    def explain(self, failed: RequestFailedError, models: Sequence[str] = ()) -> str:
        """What went wrong, with its remedy, in a sentence."""
        if failed.timed_out:
            return f"{self.name} gave no answer within {self.timeout:g} s: raise --teacher_timeout, or {AGAIN}."
        if failed.status is None:
            return f"{self.name} cannot be reached ({failed}): check the address, or {AGAIN}."
        if failed.status == 200:
            return f"{self.name} gives no answer of an LLM but {failed.reason!r}: check the address of --teacher."
        if failed.no_credit:
            return f"{self.name} wants to be paid ({failed}): add credit there, and {AGAIN}."
        if failed.status in (401, 403):
            return (
                f"{self.name} does not accept the key ({failed}): pass {KEY_OPTION} with the name of the "
                "environment variable that holds the right one."
            )
        if lacks_model(failed):
            others = f": it has {', '.join(models[:5])}" if models else ""
            return f"{self.name} has no model {self.model!r}{others}; pass another --teacher_model ({failed})."
        if failed.status == 404:
            return f"{self.name} has nothing there ({failed}): check the address, such as http://localhost:8000/v1."
        if failed.status == 429:
            return f"{self.name} allows no more requests for now ({failed}): {AGAIN}."
        if failed.too_long:
            return f"A question and its image are too long for {self.model} ({failed}): shorten --prompt or questions."
        if failed.status >= 500:
            return f"{self.name} is out of order ({failed}): {AGAIN}."
        return f"{self.name} refused the request ({failed}): check --teacher_model and --teacher_dialect."


def lacks_model(failed: RequestFailedError) -> bool:
    """Whether an error says that there is no such model, and not that there is no such path."""
    said = f"{failed.code} {failed.reason}"
    return failed.status == 404 and NO_MODEL.search(said) is not None or "model_not_found" in failed.code


def is_refusal(failed: RequestFailedError) -> bool:
    """Whether the server does not want to answer for what the image shows, or the question says."""
    return failed.status in (400, 403, 451) and REFUSAL.search(f"{failed.code} {failed.reason}") is not None


def is_about_image(failed: RequestFailedError) -> bool:
    """Whether the server does not take this image, too large for instance."""
    return failed.status == 413 or (failed.status in (400, 415, 422) and IMAGE.search(failed.reason) is not None)


def may_pass(failed: RequestFailedError) -> bool:
    """Whether another server may answer what this one does not."""
    return failed.status is None or failed.status >= 500 or failed.status == 429
