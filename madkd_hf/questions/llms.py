"""LLMs behind HTTP: Inference Providers of the Hub, or any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from huggingface_hub import InferenceClient, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HTTPError, InferenceTimeoutError, OfflineModeIsEnabled

from ..text import excerpt
from .prompts import Message
from .remote import LLMError, NoCompletion, Refused, RemoteLLM


LARGEST = 10_000_000  # bytes of an answer; a long one has thousands


class HubLLM(RemoteLLM):
    """A model by Inference Providers, paid by the account of the token.

    Args:
        model: its id on the Hub.
        provider: who computes, such as "together"; "auto" leaves it to the settings of the account.
        token: a token of the Hub or a key of the provider; by default HF_TOKEN or what `hf auth login` stored.
        options: as in `RemoteLLM`.

    Raises:
        LLMError: no token, or HF_HUB_OFFLINE=1.
    """

    def __init__(self, model: str, provider: str = "auto", token: str | None = None, **options: Any):
        self.provider = provider
        super().__init__(model, token or get_token(), **options)
        if constants.is_offline_mode():
            raise LLMError(
                "HF_HUB_OFFLINE=1 is set, and Inference Providers are online: unset it, or pass --base_url or --local."
            )
        if self._key is None:
            raise LLMError(
                "Inference Providers want a token and there is none: run `hf auth login`, or set HF_TOKEN (free ones "
                f"at {constants.ENDPOINT}/settings/tokens), or pass --base_url or --local."
            )
        self._client = InferenceClient(provider=provider, token=self._key, timeout=self.timeout)

    @property
    def place(self) -> str:
        """See `RemoteLLM`."""
        return "Inference Providers" if self.provider == "auto" else f"Inference Providers ({self.provider})"

    def _send(self, messages: Sequence[Message], options: dict[str, Any]) -> dict[str, Any]:
        extra = {key: options[key] for key in ("max_completion_tokens",) if key in options}
        known = {key: value for key, value in options.items() if key not in extra}
        try:
            return self._client.chat_completion(list(messages), model=self.name, extra_body=extra or None, **known)
        except InferenceTimeoutError as error:
            raise Refused(str(error), timed_out=True) from None
        except HfHubHTTPError as error:
            status, wait = error.response.status_code, error.response.headers.get("Retry-After")
            body = _body(error.response)
            reason = _message(body) or error.server_message or str(error)
            raise Refused(reason, status, wait, code=_code(body)) from None
        except (HTTPError, OfflineModeIsEnabled) as error:
            raise Refused(str(error) or type(error).__name__) from None
        except json.JSONDecodeError as error:
            raise _no_json(error.doc) from None
        except (ValueError, KeyError) as error:  # an unknown provider, or one that does not have the model
            raise LLMError(self._without_key(f"{self.place} cannot serve {self.name!r}: {error}")) from None

    def _remedy_for_key(self) -> str:
        return (
            "log in again with `hf auth login`, or set HF_TOKEN to a token that may make calls to Inference Providers."
        )


class ServerLLM(RemoteLLM):
    """A model of an OpenAI-compatible server: vLLM, TGI, Ollama, llama.cpp, OpenAI, ...

    The request is made here and not by `InferenceClient(base_url=...)`: that one turns a JSON schema into TGI's own
    form, which the others refuse or ignore, and sends the user's Hub token to whoever the address belongs to.

    Args:
        model: its name there.
        base_url: with or without /v1 and /chat/completions.
        key: what it wants as a bearer token, if any.
        options: as in `RemoteLLM`.

    Raises:
        ValueError: no address of that kind, or one with a password.
    """

    def __init__(self, model: str, base_url: str, key: str | None = None, **options: Any):
        parts = _parts(base_url)
        super().__init__(model, key, **options)
        self._host = parts.hostname + (f":{parts.port}" if parts.port else "")
        path = parts.path.rstrip("/").removesuffix("/chat/completions")
        self._url = parts._replace(path=(path or "/v1") + "/chat/completions").geturl()

    @property
    def place(self) -> str:
        """See `RemoteLLM`."""
        return f"The server at {self._host}"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine, so that nobody is paid."""
        return urlsplit(self._url).hostname in ("localhost", "127.0.0.1", "::1", "0.0.0.0")

    def _ways_to_ask_for_json(self, schema: dict[str, Any]) -> list[dict[str, Any] | None]:
        first, last = super()._ways_to_ask_for_json(schema)
        return [first, {"type": "json_object", "value": schema}, last]  # the second is TGI's

    def _send(self, messages: Sequence[Message], options: dict[str, Any]) -> dict[str, Any]:
        body = json.dumps({"model": self.name, "messages": list(messages), **options}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "madkd_hf"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, body, headers)
        try:
            with _opener().open(request, timeout=self.timeout) as response:
                content = response.read(LARGEST)  # never all that it says it has: that may be 10 ** 15 bytes
                if len(content) < LARGEST and response.length:
                    raise http.client.IncompleteRead(content, response.length)
        except urllib.error.HTTPError as error:
            if 300 <= error.code < 400:
                raise LLMError(self._without_key(self._elsewhere(error))) from None
            said = _read(error)
            wait = error.headers.get("Retry-After")
            raise Refused(_message(said) or error.reason, error.code, wait, code=_code(said)) from None
        except TimeoutError:
            raise Refused("timed out", timed_out=True) from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Refused(str(reason) or type(reason).__name__, timed_out=isinstance(reason, TimeoutError)) from None
        if len(content) == LARGEST:
            raise LLMError(f"{self.place} answers with more than {LARGEST:,} bytes: look at the address.")
        try:
            return json.loads(content)
        except (ValueError, RecursionError):
            raise _no_json(content.decode(errors="replace")) from None

    def _elsewhere(self, error: urllib.error.HTTPError) -> str:
        to = urlsplit(urljoin(self._url, error.headers.get("Location", "")))
        address = f"{to.scheme}://{to.netloc.rpartition('@')[2]}{to.path.removesuffix('/chat/completions')}"
        return (
            f"{self.place} sends the request on to {excerpt(address, 200)} ({error.code}), which did not get "
            "it: pass that address by --base_url, if it is where you want to ask."
        )


def _parts(base_url: str) -> SplitResult:
    try:
        parts = urlsplit(base_url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a port that is none
        sound = False
    shown = re.sub(r"^(\w+://)?.*@", r"\1***@", base_url, flags=re.DOTALL)
    if not sound:
        raise ValueError(f"base_url is {shown!r}: expected an address such as http://localhost:8000/v1.")
    if "@" in parts.netloc:
        raise ValueError(
            f"base_url is {shown!r}, with a user name or password: leave them out, and pass a key by --api_key_env."
        )
    return parts


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The key is for the address that the user gave, and for no other."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(_NoRedirects)


def _body(response: Any) -> str:
    try:
        return response.text
    except Exception:  # a stream that is closed
        return ""


def _read(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(LARGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException):  # cut on the way
        return ""


def _no_json(body: str) -> NoCompletion:
    return NoCompletion(f"answers with no JSON but {excerpt(body, 100)!r}", "look at the address")


def _code(body: str) -> str:
    """What OpenAI's errors have beside the text, such as "insufficient_quota"."""
    try:
        error = json.loads(body)["error"]
        return f"{error.get('code')} {error.get('type')}"
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return ""


def _message(body: str) -> str:
    """What an error's body says: OpenAI, vLLM, TGI, FastAPI and Ollama each have their own place for it."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return " ".join(body.split())
    for _ in range(3):
        if isinstance(content, dict):
            content = next((content[key] for key in ("error", "message", "detail") if content.get(key)), content)
    return content if isinstance(content, str) else json.dumps(content)
