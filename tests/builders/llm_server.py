"""A server of multimodal LLMs on 127.0.0.1, in all dialects, with faults when they are wanted.

Its model is made up: the mean colour of the image and the question decide the logits of 40 tokens. So a test knows
what each answer has to be, and a server with another seed is another model.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import io
import json
import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from builders.openai_server import Fault
from PIL import Image


TOKENS = ["yes", "Yes", "YES", " yes", " Yes", "no", "No", "NO", " no", " No", "<think>", "\n"]
TOKENS += [f"word{i}" for i in range(28)]
YES, NO = range(5), range(5, 10)
DIALECTS = ("chat-ids", "chat-topk", "systemone", "decisions")


class Model:
    """Logits from an image and a question; another seed is another model."""

    def __init__(self, seed: int = 0, blind: bool = False, spread: float = 3.0, step: float | None = None):
        self.seed, self.blind, self.spread, self.step = seed, blind, spread, step

    @functools.lru_cache(100_000)  # noqa: B019
    def logprobs(self, colour: tuple[float, ...], question: str) -> np.ndarray:
        """[40] of the next token."""
        if self.blind:
            colour = (0.0, 0.0, 0.0)
        words = f"{self.seed} {question}".encode()
        draw = np.random.default_rng(int.from_bytes(hashlib.sha256(words).digest()[:8], "little"))
        logits = draw.normal(size=(len(TOKENS), 4)) @ np.array([1.0, *colour]) * self.spread
        logits[:10] += 4 * self.spread / 3
        for index, name in enumerate(("red", "green", "blue")):
            if f"image {name}" in question:
                logits[:5] += 12 * (2 * colour[index] - sum(colour))
        if self.step:
            logits = np.round(logits / self.step) * self.step
        return logits - np.logaddexp.reduce(logits)

    def answer(self, image: Image.Image, question: str) -> tuple[float, float]:
        """Log-odds and mass, as a teacher has to give them."""
        log = self.logprobs(colour_of(image), question)
        yes, no = (float(np.logaddexp.reduce(log[list(side)])) for side in (YES, NO))
        return yes - no, math.exp(yes) + math.exp(no)


def colour_of(image: Image.Image) -> tuple[float, ...]:
    return tuple(np.asarray(image.convert("RGB"), dtype=np.float64).mean(axis=(0, 1)).round(6) / 255)


@functools.lru_cache(4096)
def _colour(png: str) -> tuple[float, ...]:
    image = Image.open(io.BytesIO(base64.b64decode(png.rpartition(",")[2], validate=True)))
    assert image.format == "PNG" and image.mode == "RGB"
    return colour_of(image)


class LLMServer:
    """Use as a context; `url` is what goes to --teacher.

    Args:
        model: who answers.
        dialects: what it speaks; others are not there, and ids are ignored without chat-ids.
        name: of the model.
        key: the bearer token that is wanted.
        seconds, at_once: how long an answer takes, and how many are made at a time.
        fault: called with the number of a request for answers (from 0), its path and its body; what it returns is
            sent in place of an answer, "drop" closes the connection.
        mangle: called with the number, the answer and the request, returns what is sent.
        most: questions in one request.
        decimals: of probabilities; None gives them as they are.
        tokenizes: whether there is /tokenize.
        port: 0 takes any.
        root: what it says that the model is.
        keeps: whether the bodies of requests are kept, in `requests`.
    """

    def __init__(
        self,
        model: Model | None = None,
        dialects: tuple[str, ...] = DIALECTS,
        name: str = "tiny",
        key: str | None = None,
        seconds: float = 0.0,
        at_once: int = 64,
        fault: Callable[[int, str, dict], Fault | str | None] = lambda number, path, body: None,
        mangle: Callable[[int, dict, dict], Any] = lambda number, answer, body: answer,
        most: int | None = None,
        decimals: int | None = 2,
        tokenizes: bool = True,
        port: int = 0,
        root: str = "/models/tiny-tiny",
        keeps: bool = True,
    ):
        self.model, self.dialects, self.name, self.key = model or Model(), dialects, name, key
        self.seconds, self.at_once, self.fault, self.mangle = seconds, at_once, fault, mangle
        self.most, self.decimals, self.tokenizes, self.port = most, decimals, tokenizes, port
        self.root, self.keeps = root, keeps
        self.requests: list[tuple[str, dict]] = []  # for answers
        self.headers: list[dict[str, str]] = []
        self.now = self.most_at_once = 0

    def __enter__(self) -> LLMServer:
        self.loop, ready = asyncio.new_event_loop(), threading.Event()

        def run() -> None:
            asyncio.set_event_loop(self.loop)
            self.places = asyncio.Semaphore(self.at_once)
            started = asyncio.start_server(self._serve, "127.0.0.1", self.port, limit=2**26)
            self.server = self.loop.run_until_complete(started)
            self.port = self.server.sockets[0].getsockname()[1]
            ready.set()
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        ready.wait()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_: Any) -> None:
        async def stop() -> None:
            self.server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = {line.partition(":")[0].lower(): line.partition(":")[2].strip() for line in head[1:] if line}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = head[0].split()[1]
                if self.keeps:
                    self.headers.append({**headers, "path": path})
                answer = await self._answer(path, headers, json.loads(body) if body else {})
                if answer == "drop":
                    return
                await self._send(writer, answer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _send(self, writer: asyncio.StreamWriter, answer: Any) -> None:
        status, more, drip, content = 200, {}, 0.0, None
        if isinstance(answer, Fault):
            await asyncio.sleep(answer.seconds)
            status, more, drip, content = answer.status, answer.headers, answer.drip, answer.body
            answer = {"error": {"message": answer.message, "type": "error"}}
        content = (json.dumps(answer) if content is None else content).encode()
        more = {"retry-after-ms": "1", **more} if status != 200 else more  # tests do not wait
        lines = [f"HTTP/1.1 {status} Whatever", "content-type: application/json", f"content-length: {len(content)}"]
        writer.write("\r\n".join([*lines, *(f"{name}: {value}" for name, value in more.items()), "", ""]).encode())
        for part in [content[i : i + 1] for i in range(len(content))] if drip else [content]:
            await asyncio.sleep(drip) if drip else None
            writer.write(part)
        await writer.drain()

    async def _answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> Any:
        if self.key and headers.get("authorization") != f"Bearer {self.key}":
            return Fault(401, f"Incorrect API key provided: {headers.get('authorization', '')[7:]}")
        if path == "/v1/models":
            return {"data": [{"id": self.name, "owned_by": "builders", "root": self.root}]}
        if path == "/version":
            return {"version": "1.2.3"}
        if path == "/tokenize" and self.tokenizes:
            return {"tokens": tokens_of(body["prompt"])}
        kinds = {"/v1/chat/completions": "chat", "/v1/systemone": "systemone", "/v1/decisions": "decisions"}
        kind = kinds.get(path)
        if kind is None or not any(name.startswith(kind) for name in self.dialects):
            return Fault(404, "Not Found")
        number = len(self.requests)
        self.requests.append((path, body if self.keeps else {}))
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            async with self.places:
                await asyncio.sleep(self.seconds)
            if (fault := self.fault(number, path, body)) is not None:
                return fault
            if body["model"] != self.name:
                return Fault(404, f"The model `{body['model']}` does not exist.")
            answer = getattr(self, f"_{kind}")(body)
            return answer if isinstance(answer, Fault) else self.mangle(number, answer, body)
        finally:
            self.now -= 1

    def _chat(self, body: dict[str, Any]) -> Any:
        image, text = body["messages"][-1]["content"]
        log = self.model.logprobs(_colour(image["image_url"]["url"]), text["text"])
        ids = body.get("logprob_token_ids") if "chat-ids" in self.dialects else None
        if ids is not None:
            shown = {f"token_id:{token}": log[token] for token in ids}
        else:
            most = np.argsort(-log)[: min(body.get("top_logprobs", 0), 20)]
            shown = {TOKENS[token]: log[token] for token in most}
        entries = [{"token": name, "logprob": float(value), "bytes": None} for name, value in shown.items()]
        best = TOKENS[int(log.argmax())]
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": best}}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": best, "logprob": float(log.max()), "top_logprobs": entries}]}
        usage = {"prompt_tokens": 100 + len(text["text"].split()), "completion_tokens": 1}
        more = {"prompt_token_ids": tokens_of(text["text"])} if body.get("return_token_ids") else {}
        return {"model": self.name, "choices": [choice], "usage": usage, **more}

    def _probability(self, png: str, question: str) -> float:
        log = self.model.logprobs(_colour(png), question)
        z = np.logaddexp.reduce(log[list(YES)]) - np.logaddexp.reduce(log[list(NO)])
        p = 1 / (1 + math.exp(-z))
        return p if self.decimals is None else round(p, self.decimals)

    def _systemone(self, body: dict[str, Any]) -> Any:
        assert set(body) == {"model", "state", "questions", "assets"}  # others are refused
        if len(body["questions"]) > (self.most or 64):
            return Fault(422, "Dictionary should have at most 64 items after validation (questions)")
        (png,) = [asset["data_base64"] for name, asset in body["assets"].items() if name in body["state"]]
        asked = {name: question["instructions"] for name, question in body["questions"].items()}
        answers = {name: {"type": "noul", "noul": self._probability(png, text)} for name, text in asked.items()}
        return {
            "model": self.name,
            "answers": answers,
            "usage": {"input_tokens": 100 * len(asked), "output_tokens": 0},
        }

    def _decisions(self, body: dict[str, Any]) -> Any:
        if len(body["questions"]) > (self.most or 400):
            return Fault(400, "questions: at most 400 are allowed")
        (part,) = body["input"][-1]["content"]
        answers = [
            {
                "type": "predicate",
                "name": question["name"],
                "probability": self._probability(part["image_url"], question["instructions"]),
            }
            for question in body["questions"]
        ]
        return {"model": self.name, "answers": answers, "usage": {"input_tokens": 200, "output_tokens": 10}}


def tokens_of(text: str) -> list[int]:
    """The id of a token, and for other texts one of each letter, beyond those of the model."""
    if text.startswith("\n") and text[1:] in TOKENS and text != "\n":
        return [TOKENS.index("\n"), TOKENS.index(text[1:])]
    return [TOKENS.index(text)] if text in TOKENS else [100 + ord(letter) % 100 for letter in text]
