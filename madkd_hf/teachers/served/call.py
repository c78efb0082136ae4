"""One call of `ServedTeacher.read`: its images, cut into requests, and the answers that come back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL.Image import Image

from ...aspects import AspectBank
from ...text import get_logger
from .asking import ImageRefusedError, ask
from .dialects import Answer
from .endpoint import Endpoint
from .images import Encoded, encode
from .schedule import Job, Schedule


if TYPE_CHECKING:
    from .teacher import ServedTeacher

logger = get_logger(__name__)

AHEAD = 4  # images that are encoded before their turn


class Call:
    """The questions of one call of `read`, and their answers."""

    def __init__(self, teacher: ServedTeacher, images: Sequence[Image], bank: AspectBank):
        self.teacher, self.images, self.bank, self.fingerprint = teacher, images, bank, bank.fingerprint
        size, count = teacher.questions_per_request, len(bank)
        self.parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        texts = [[bank.questions[q] for q in part] for part in self.parts]
        self.requests = [teacher.dialect.request(questions) for questions in texts]  # the same about every image
        self.left = [len(self.parts)] * len(images)  # requests
        self.encoded: dict[int, asyncio.Future[Encoded]] = {}
        self.answers: list[list[Answer | None]] = [[None] * count for _ in images]
        self.refused: dict[int, ImageRefusedError] = {}

    async def run(self) -> tuple[list[list[Answer]], dict[int, ImageRefusedError]]:
        endpoints = self.teacher.endpoints
        alone = self.teacher.dialect.shares_prefix and len(self.parts) > 1
        await Schedule([len(self.parts)] * len(self.images), endpoints, alone, self._send).run()
        return self.answers, self.refused

    def _image(self, index: int) -> asyncio.Future[Encoded]:
        """An image, encoded in another thread, and the next ones on their way."""
        loop = asyncio.get_running_loop()
        for number in range(index, min(index + AHEAD, len(self.images))):
            if number not in self.encoded:
                self.encoded[number] = loop.run_in_executor(self.teacher.pool, encode, self.images[number])
        return self.encoded[index]

    async def _send(self, endpoint: Endpoint, job: Job) -> bool:
        index, part = job
        image, questions = await self._image(index), self.parts[part]
        known = self.teacher.known.setdefault((image.key, self.fingerprint), [None] * len(self.bank))
        if index not in self.refused and any(known[q] is None for q in questions):
            try:
                answers = await ask(endpoint, self.teacher.dialect, image, self.requests[part], len(questions))
            except ImageRefusedError as error:
                self.refused[index] = error
                answers = [None] * len(questions)
            if answers is None:
                if len(self.teacher.endpoints) > 1:
                    logger.warning(f"{endpoint.dead} What it was to answer goes to the other servers.")
                return False
            for q, answer in zip(questions, answers):
                known[q] = answer
        for q in questions:
            self.answers[index][q] = known[q]
        self.left[index] -= 1
        if not self.left[index]:
            self.encoded[index] = None  # its bytes are no longer needed
        return True
