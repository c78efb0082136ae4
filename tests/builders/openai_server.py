"""A small server of OpenAI's chat completions on 127.0.0.1, whose answers come from a script or from a real LLM.

With a script, each request takes its next entry: a text, or a `Fault`; the last entry stays. Every request is kept.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """An answer that is none.

    Attributes:
        status: of HTTP.
        message: what the error says, in OpenAI's place for it.
        headers: beside the usual ones.
        seconds: to wait before.
        body: sent as it is in place of the error.
        drip: seconds before each byte of it.
    """

    status: int = 500
    message: str = "out of order"
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    body: str | None = None
    drip: float = 0


def completion(content: Any = None, finish_reason: str = "stop", **message: Any) -> Fault:
    """A whole answer, for what a text alone cannot say."""
    message = {"role": "assistant", "content": content, **message}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return Fault(200, body=json.dumps({"choices": [choice]}))


class OpenAIServer:
    """Use as a context; `url` is what goes to --base_url.

    Args:
        script: texts and faults, in turn; or None.
        llm: answers in place of a script, by its method `complete`.
        key: the bearer token that is wanted.
        model: the only one there is; None takes any name.
        refuses: values of response_format's type that are refused with 400.
    """

    def __init__(
        self,
        script: Sequence[str | Fault] = (),
        llm: Any = None,
        key: str | None = None,
        model: str | None = None,
        refuses: Sequence[str] = (),
    ):
        self.script, self.llm, self.key, self.model, self.refuses = list(script), llm, key, model, refuses
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> OpenAIServer:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.headers.append(dict(self.headers))
                self.reply(Fault(405, "POST it"))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = outer.answer(self.path, headers, body)
                try:
                    self.reply(answer)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # who asked did not wait

            def reply(self, answer: str | Fault) -> None:
                status, headers, drip = 200, {}, 0.0
                if isinstance(answer, Fault):
                    time.sleep(answer.seconds)
                    status, drip = answer.status, answer.drip
                    headers = {"retry-after-ms": "1", **answer.headers}  # tests do not wait
                    error = json.dumps({"error": {"message": answer.message, "type": "error"}})
                    content = error if answer.body is None else answer.body
                else:
                    content = completion(answer).body
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content.encode())))
                self.end_headers()
                for part in [bytes([byte]) for byte in content.encode()] if drip else [content.encode()]:
                    time.sleep(drip)
                    self.wfile.write(part)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: dict[str, str], body: dict[str, Any]) -> str | Fault:
        """What this request gets."""
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            if path.split("?")[0] != "/v1/chat/completions":
                return Fault(404, f"no {path}")
            if self.key and headers.get("authorization") != f"Bearer {self.key}":
                return Fault(401, f"Incorrect API key provided: {headers.get('authorization', '')[7:]}")
            if self.model and body["model"] != self.model:
                return Fault(404, f"The model `{body['model']}` does not exist.")
            wanted = (body.get("response_format") or {}).get("type")
            if wanted in self.refuses:
                return Fault(400, f"response_format type {wanted} is not supported")
            if self.llm is not None:
                return self.llm.complete(body["messages"], None, body["max_tokens"], body.get("seed", 0))
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]
