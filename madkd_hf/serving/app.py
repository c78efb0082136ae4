"""The routes: System One, plain uploads, and what tells how the server is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import torch
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from .. import __version__
from ..data.decoding import count_cores
from . import systemone
from .batching import Batcher
from .guard import CONTENT, Guard
from .images import ImageReader
from .limits import Limits, RefusedError
from .metrics import Metrics
from .student import Outputs, ServedStudent


Result = TypeVar("Result")
TOP_K, REASONS = 5, 0
MULTIPART, BYTES = "multipart/form-data", "application/octet-stream"
BINARY = {"schema": {"type": "string", "format": "binary"}}
ONE_FILE = {"type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"]}
CLASSIFY = {
    "requestBody": {
        "required": True,
        "content": {MULTIPART: {"schema": ONE_FILE}, BYTES: BINARY},
    },
    "parameters": [
        {"name": name, "in": "query", "description": text, "schema": {"type": "integer", "default": default}}
        for name, text, default in (
            ("top_k", "How many classes to name.", TOP_K),
            ("reasons", "How many answers to name that speak most for the class.", REASONS),
        )
    ],
}
EXAMPLE = {
    "state": "<asset-1>",
    "questions": {"q0": {"type": "noul", "instructions": "Is it red?"}},
    "assets": {"<asset-1>": {"type": "image", "format": "png", "data_base64": "..."}},
}
SYSTEMONE = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object"}, "example": EXAMPLE}},
    }
}


def build_app(student: ServedStudent, limits: Limits, key: str | None = None) -> Guard:
    """The application that a server runs, with its guard around it; `key` is what clients have to send, if any."""
    metrics = Metrics()
    service = Service(student, limits, metrics)
    app = FastAPI(
        title="madkd serve",
        version=__version__,
        description="A student that names classes and answers questions about images.",
        docs_url=None,  # its page would load scripts from a CDN
        redoc_url=None,
        lifespan=service.running,
    )

    @app.post("/v1/systemone", openapi_extra=SYSTEMONE, response_class=Response)
    async def decide(request: Request) -> Response:
        """Questions of the types noul and choice about an image, as `transformers serve` takes them."""
        return await service.decide(request.scope[CONTENT])

    @app.post("/classify", openapi_extra=CLASSIFY, response_class=Response)
    async def classify(request: Request) -> Response:
        """The class of an image, and all answers; the image is a file of a form, or the body."""
        top_k, reasons = (_count(request, name, default) for name, default in (("top_k", TOP_K), ("reasons", REASONS)))
        return await service.classify(await _upload(request), top_k, reasons)

    @app.get("/v1/models", response_class=Response)
    async def models() -> Response:
        """The student, its questions and its labels."""
        entry = {"id": student.name, "object": "model", "created": 0, "owned_by": "madkd_hf"}
        entry |= {"questions": student.questions, "labels": student.labels}
        return _json({"object": "list", "data": [entry]})

    @app.get("/health", response_class=Response)
    async def health() -> Response:
        """Whether the server is there; it needs no key."""
        return _json({"status": "ok"})

    @app.get("/metrics", response_class=Response)
    async def numbers() -> Response:
        """Counts for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        return _json({"detail": error.sentence}, error.status, headers)

    @app.exception_handler(Exception)  # the guard notes why
    async def failed(_: Request, error: Exception) -> Response:
        return _json({"detail": "The server failed at this request; its log says why."}, 500)

    return Guard(app, limits, metrics, key)


class Service:
    """What happens to an image: decoded in threads, read with others, answered."""

    def __init__(self, student: ServedStudent, limits: Limits, metrics: Metrics):
        self.student, self.limits = student, limits
        self.reader = ImageReader(limits, student.prepare)
        self.batcher: Batcher[torch.Tensor, Outputs] = Batcher(
            student.answer, limits.batch, limits.wait, metrics.batches.observe
        )
        self.pool = ThreadPoolExecutor(max(2, count_cores()), "images")

    @asynccontextmanager
    async def running(self, _: FastAPI) -> AsyncIterator[None]:
        """As long as the server runs."""
        async with self.batcher:
            yield
        self.pool.shutdown(cancel_futures=True)

    async def decide(self, body: bytes) -> Response:
        """A request of System One."""

        def prepare() -> tuple[systemone.Decisions, torch.Tensor]:
            decisions = systemone.parse(body, self.student)
            return decisions, self.reader.read(decisions.image)

        decisions, pixels = await self._in_thread(prepare)
        return _json(decisions.answers(self.student, await self._read(pixels)))

    async def classify(self, content: bytes, top_k: int, reasons: int) -> Response:
        """An image file."""
        if reasons and self.student.because is None:
            raise RefusedError(422, "This student has no reasons to give, without aspects or a linear head.")
        pixels = await self._in_thread(lambda: self.reader.read(content))
        return _json(self.student.classified(await self._read(pixels), top_k, reasons))

    async def _read(self, pixels: torch.Tensor) -> Outputs:
        try:
            return await self.batcher.submit(pixels)
        except ValueError as error:
            raise RefusedError(500, f"The image has no answer, since {error}.") from None

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self.pool, work)


async def _upload(request: Request) -> bytes:
    """The file of a form with one, or else the body, whatever it calls itself."""
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        return request.scope[CONTENT]
    try:
        async with request.form(max_files=1, max_fields=8) as form:
            files = [value for value in form.values() if not isinstance(value, str)]
            if not files:
                raise RefusedError(422, "The form has no image file: send one, as curl -F image=@photo.jpg does.")
            return await files[0].read()
    except RefusedError:
        raise
    except HTTPException as error:
        raise RefusedError(422, f"The form cannot be read ({error.detail}): send one image file.") from None
    except Exception as error:  # whatever a parser makes of garbage
        raise RefusedError(422, f"The form cannot be read ({type(error).__name__}): send one image file.") from None


def _count(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 6):
        raise RefusedError(422, f"{name} is a number from 0 on.")
    return int(text)


def _json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """In ASCII: names that strangers chose may hold what cannot be encoded."""
    text = json.dumps(content, allow_nan=False)
    return Response(text, status, headers=headers, media_type="application/json")
