"""A teacher that somebody else runs: any multimodal LLM behind a server that gives probabilities."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from ...aspects import AspectBank
from ...llm import LLMError
from ...llm.keys import key_in
from ...text import counted, get_logger
from ..base import Cost, Reading, Teacher, UnreadableImageError
from . import words as spelling
from .asking import ImageRefusedError, TooManyQuestionsError
from .background import Background
from .call import Call
from .dialects import DIALECTS, Answer, Dialect, Words
from .endpoint import KEY_OPTION, Endpoint
from .probe import Probe, probe


logger = get_logger(__name__)

CALL = 40  # times the requests in flight: what one call of `read` should have, so that its end costs little
REST = 60.0  # seconds, after which a server that was out of order is tried again
MOST_IMAGES = 128  # in one call: they are in memory, decoded
MOST_AT_ONCE = 256  # requests in flight, where nobody says another number
USUAL_AT_ONCE = 64  # of which servers take so many


class ServedTeacher(Teacher):
    """Reads the answers of a model behind one server or several, which have to serve the same.

    Args:
        endpoints: the servers.
        dialect: how to ask them, "auto" for the first of `dialects.DIALECTS` that all speak.
        tokenizer: the served model's, a folder or Hub id; without it the servers are asked for the tokens.
        prompt, system: the user turn with `{question}`, and the system prompt; by default the dialect's.
        answer_tokens: two words to read in place of every spelling of yes and no.
        price: of a million tokens, for what is shown.

    Raises:
        LLMError, ValueError: the servers cannot be used, in one sentence; see `probe`.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        dialect: str = "auto",
        tokenizer: str | None = None,
        prompt: str | None = None,
        system: str | None = None,
        answer_tokens: tuple[str, str] | None = None,
        price: float | None = None,
        revision: str | None = None,
    ):
        if dialect not in (*DIALECTS, "auto"):
            raise ValueError(f"Unknown dialect {dialect!r}: expected auto or one of {', '.join(DIALECTS)}.")
        if prompt is not None and "{question}" not in prompt:
            raise ValueError(f"The prompt {prompt!r} has no place for the question: write {{question}} where it goes.")
        if answer_tokens is not None and len(answer_tokens) != 2:
            raise ValueError(f"answer_tokens takes two words, as in ('Yes', 'No'); received {answer_tokens!r}.")
        self.endpoints, self.price = list(endpoints), price
        self.plan: dict[str, Any] | None = None
        self.known: dict[tuple[bytes, str], list[Answer]] = {}  # answers that are paid for, and not given out yet
        self._compared: dict[str, Any] | None = None  # the probe of a plan that these servers fit
        self._lock = threading.Lock()
        self.pool = ThreadPoolExecutor(2)
        self._background = Background(*(endpoint.server.close for endpoint in self.endpoints))
        try:
            self._background.run(self._connect(dialect, tokenizer, prompt, system, answer_tokens, revision))
        except BaseException:
            self._background.close()
            raise

    @classmethod
    def from_pretrained(
        cls,
        addresses: str,
        model: str | None = None,
        tokenizer: str | None = None,
        dialect: str = "auto",
        key_variable: str | None = None,
        plain_http: bool = False,
        requests: int | None = None,
        timeout: float = 120.0,
        retries: int = 8,
        prompt: str | None = None,
        system: str | None = None,
        answer_tokens: tuple[str, str] | None = None,
        price_per_million: float | None = None,
        revision: str | None = None,
    ) -> ServedTeacher:
        """A teacher by its address, or several addresses with spaces between them.

        Args:
            model: its name on the server.
            key_variable: the environment variable that holds the key, if the server wants one.
            plain_http: send the key over http to another machine.
            requests: the most at once to one server; by default as many as bring more answers.
            timeout: seconds for one answer.
            retries: how often a request is repeated while the server is busy.
            price_per_million: of tokens.
            revision: of the tokenizer on the Hub.
            tokenizer, dialect, prompt, system, answer_tokens: see the class.
        """
        if not model:
            raise ValueError("No model given: pass --teacher_model with the name that the server has for it.")
        for name, value in {"requests": requests, "timeout": timeout, "price_per_million": price_per_million}.items():
            if value is not None and not (0 < value < math.inf or (name.startswith("price") and value == 0)):
                raise ValueError(f"{name} is {value}: expected more than 0.")
        if not 0 <= retries <= 100:
            raise ValueError(f"retries is {retries}: expected 0 to 100.")
        key = key_in(key_variable, KEY_OPTION)
        endpoints = [
            Endpoint(address, key, model, timeout, retries, requests or MOST_AT_ONCE, plain_http)
            for address in dict.fromkeys(addresses.split())
        ]
        return cls(endpoints, dialect, tokenizer, prompt, system, answer_tokens, price_per_million, revision)

    async def _connect(
        self,
        dialect: str,
        tokenizer: str | None,
        prompt: str | None,
        system: str | None,
        answer_tokens: tuple[str, str] | None,
        revision: str | None,
    ) -> None:
        """Ask every server what it is, and see that all are the same."""
        first = self.endpoints[0]
        self.about = await first.described()
        models, names = self.about.pop("models"), [dialect] if dialect != "auto" else list(DIALECTS)
        words, own = Words({}, {}, answer_tokens), None
        if tokenizer is not None:
            words, own = spelling.of_tokenizer(tokenizer, answer_tokens, revision)
            if text := await spelling.differs(first, own):
                raise ValueError(
                    f"The tokenizer {tokenizer} is not that of {first.model} on {first.name}, which makes other "
                    f"tokens of {text!r}: pass --teacher_tokenizer with the served model's."
                )
        elif any(name.startswith("chat") for name in names):
            words = await spelling.of_server(first, answer_tokens) or words
        self._asked = prompt, system
        self.probe: Probe = await probe(first, names, words, prompt, system, models)
        self.dialect: Dialect = self.probe.dialect
        self.questions_per_request = self.dialect.most_questions
        for other in self.endpoints[1:]:
            about = await other.described()
            found = await probe(other, [self.dialect.name], words, prompt, system, about.pop("models"))
            difference = found.difference(self.probe.state, None)
            if about.get("root") != self.about.get("root"):
                difference = f"it is {about.get('root')!r} there, and {self.about.get('root')!r} here"
            if difference:
                raise ValueError(
                    f"{other.name} serves another model under the name {other.model!r} than {first.name} "
                    f"({difference}): pass servers of the same model."
                )

    def read(self, images: Sequence[Image], bank: AspectBank) -> Reading:
        """Ask every question of the bank about every image.

        Returns:
            Log-odds, NaN where the server gave none (`Reading.missing`), and mass, None where it is not told.

        Raises:
            UnreadableImageError: the server does not take an image; the answers about the others are kept, so that
                they are not paid for twice.
            LLMError: there are no more answers to be had, in one sentence.
        """
        with self._lock:
            if self.plan is None:
                self._plan(images, bank)
            elif self.plan["probe"] not in (self.probe.state, self._compared):
                self._compare()
            return self._reading(self._answers(images, bank), bank)

    def prepare(self, images: Sequence[Image], bank: AspectBank) -> dict[str, Any]:
        """See what the answers about these images are like; they are kept, and not asked for again.

        Returns:
            `precision` in words and `step`, what the numbers are rounded to; `probe`, by which the model is known
            again; `batch_size`, the questions that one call of `read` should have.
        """
        with self._lock:
            return self.plan if self.plan is not None else self._plan(images, bank)

    def measure(self, images: Sequence[Image], bank: AspectBank) -> Cost:
        """Ask every question about these images, and tell what that took."""
        begun, before = time.monotonic(), self.tokens
        self.prepare(images, bank)
        seconds, count = time.monotonic() - begun, math.ceil(len(bank) / self.questions_per_request)
        found = sum(endpoint.limiter.rate for endpoint in self.endpoints)
        rate = max(found, len(images) * count / max(seconds, 1e-6))
        tokens = (self.tokens - before) / len(images)
        return Cost(self.endpoints[0].model, self.dialect.name, self.plan["precision"], count, tokens, rate)

    def _plan(self, images: Sequence[Image], bank: AspectBank) -> dict[str, Any]:
        answers = self._answers(images, bank, keep=True) if len(images) else []
        flat = [answer for row in answers for answer in row]
        if flat and all(answer.refused for answer in flat):
            raise ValueError(
                f"{self.endpoints[0].model} refuses all {counted(len(flat), 'question')} about the first images: pass "
                "another --teacher_model, or other questions."
            )
        step = self.dialect.step(flat)
        places = sum(min(endpoint.most, USUAL_AT_ONCE) for endpoint in self.endpoints)
        pairs = CALL * places * min(self.questions_per_request, len(bank))
        self.plan = {
            "precision": self.dialect.precision(step),
            "step": step,
            "probe": self.probe.state,
            "batch_size": min(pairs, MOST_IMAGES * len(bank)),
        }
        return self.plan

    def _compare(self) -> None:
        """Raise ValueError where the plan was made with another model of the same name."""
        if difference := self.probe.difference(self.plan["probe"], self.plan["step"]):
            raise ValueError(
                f"{self.endpoints[0].name} serves another model under the name {self.endpoints[0].model!r} than when "
                f"this job began ({difference}): serve that one again, or pass another work_dir to begin anew."
            )
        self._compared = self.plan["probe"]

    def _answers(self, images: Sequence[Image], bank: AspectBank, keep: bool = False) -> list[list[Answer]]:
        for endpoint in self.endpoints:
            endpoint.check_questions([self.dialect.text(question) for question in bank.questions])
        rows, refused = self._background.run(self._ask_all(images, bank))
        if refused:
            index, reason = next(iter(sorted(refused.items())))
            raise UnreadableImageError(index, reason)
        if not keep:
            self.known.clear()
        return rows

    async def _ask_all(
        self, images: Sequence[Image], bank: AspectBank
    ) -> tuple[list[list[Answer]], dict[int, ImageRefusedError]]:
        """The answers about each image, and which images are not taken."""
        await self._revive()
        while True:
            call = Call(self, images, bank)
            try:
                answers = await call.run()
                for endpoint in self.endpoints:
                    if endpoint.was_away and endpoint.dead is None:
                        await self._look_again(endpoint)
                return answers
            except TooManyQuestionsError as error:
                self.questions_per_request = max(1, self.questions_per_request // 2)
                logger.warning(
                    f"{self.endpoints[0].name} takes fewer questions in one request ({error}): from now on "
                    f"{self.questions_per_request}."
                )

    async def _revive(self) -> None:
        """Take servers back that were out of order; raise the last reason where none is there."""
        all_dead = all(endpoint.dead for endpoint in self.endpoints)
        for endpoint in self.endpoints:
            if endpoint.dead and (all_dead or time.monotonic() - endpoint.died_at > REST):
                try:
                    await self._look_again(endpoint)
                except LLMError as error:
                    endpoint.dead, endpoint.died_at = error, time.monotonic()
                else:
                    endpoint.dead = None
        if all(endpoint.dead for endpoint in self.endpoints):
            raise self.endpoints[-1].dead

    async def _look_again(self, endpoint: Endpoint) -> None:
        """Raise ValueError where a server that was away for a moment came back with another model."""
        found = await probe(endpoint, [self.dialect.name], self.dialect.words, *self._asked)
        step = self.plan["step"] if self.plan else None
        if difference := found.difference(self.probe.state, step):
            raise ValueError(
                f"{endpoint.name} was away, and now serves another model under the name {endpoint.model!r} "
                f"({difference}): serve the first one again, and run the same command again."
            )
        endpoint.was_away = False

    def _reading(self, rows: list[list[Answer]], bank: AspectBank) -> Reading:
        shape, step = (len(rows), len(bank)), self.plan["step"]
        z = [[self.dialect.log_odds(answer, step) for answer in row] for row in rows]
        logits = torch.tensor(np.array(z, dtype=np.float32).reshape(shape))
        mass = None
        if self.dialect.mass_known:
            mass = torch.tensor(np.array([[a.mass for a in row] for row in rows], dtype=np.float32).reshape(shape))
        return Reading(logits, mass, torch.isnan(logits))

    def prompts(self, bank: AspectBank) -> dict[str, str]:
        """What is sent of each question: a digest of all, and the first of them."""
        texts = [self.dialect.text(question) for question in bank.questions]
        digest = hashlib.sha256(json.dumps([self.dialect.system, texts]).encode()).hexdigest()[:16]
        return {"tokens": digest, "example": texts[0]}

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the answers; the address does not, so that a job may go on with another server."""
        words = self.dialect.words
        return {
            "model": self.endpoints[0].model,
            "served": {name: self.about[name] for name in ("by", "root") if name in self.about},
            "dialect": self.dialect.name,
            "prompt": self.dialect.prompt,
            "system": self.dialect.system,
            **({"yes_tokens": words.yes, "no_tokens": words.no} if self.dialect.name == "chat-ids" else {}),
            **({"answer_tokens": list(words.answer_tokens)} if words.answer_tokens else {}),
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """The identity, how exact the answers are, and what the server says that it is."""
        exactness = {"mass": "known" if self.dialect.mass_known else "not known"}
        if self.plan:
            exactness["precision"] = self.plan["precision"]
        return {**self.identity, "served": self.about, **exactness}

    @property
    def progress(self) -> str:
        """Tokens and money so far."""
        text = f"{self.tokens:,} tokens" if self.tokens else ""
        if self.tokens and self.price is not None:
            text += f", {self.tokens * self.price / 1e6:.2f} USD"
        return text

    @property
    def tokens(self) -> int:
        """Read and written by the servers so far."""
        return sum(endpoint.usage.tokens for endpoint in self.endpoints)

    @property
    def summary(self) -> str:
        """By which dialect it was asked, and what that took."""
        requests = sum(endpoint.usage.requests for endpoint in self.endpoints)
        precision = f" ({self.plan['precision']})" if self.plan else ""
        spent = f", {self.progress}" if self.progress else ""
        return f"Asked by {self.dialect.name}{precision}: {counted(requests, 'request')} in this run{spent}."
