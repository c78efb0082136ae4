"""LLMs behind an OpenAI-compatible server: vLLM, TGI, Ollama, llama.cpp, OpenAI, Inference Providers of the Hub."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huggingface_hub import constants, get_token

from . import SPARE_TOKENS, LLMError, Message
from .client import ChatServer, RequestFailedError


ROUTER = "https://router.huggingface.co/v1"  # of Inference Providers
OPTIONAL = ("max_tokens", "temperature", "seed")  # options that some models refuse, by name
RENAMED = {"max_tokens": "max_completion_tokens"}
REFUSES_AN_OPTION = {400, 415, 422, 501}  # how servers say that they do not know an option


class ServerLLM:
    """A model of an OpenAI-compatible server, by its name there.

    `base_url`, `key`, `timeout` and `retries` are those of `ChatServer`; `temperature` None leaves it to the server.
    """

    spare_tokens = SPARE_TOKENS
    key_remedy = "pass --api_key_env with the name of the environment variable that holds one"

    def __init__(
        self,
        model: str,
        base_url: str,
        key: str | None = None,
        timeout: float = 120.0,
        temperature: float | None = 0.7,
        retries: int = 5,
        server_name: str | None = None,
    ):
        self.name, self.timeout, self.temperature = model, timeout, temperature
        self.server = ChatServer(base_url, key, timeout, retries, server_name)
        self.refusal = ""  # what the last answer said in place of a text
        self._n_starved = 0  # answers in a row that ended before they began
        self._refused_options: set[str] = set()
        self._n_refused_formats = 0

    @property
    def _model(self) -> str:
        """The model, as the request names it."""
        return self.name

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any] | None = None, max_tokens: int = 1024, seed: int = 0
    ) -> str:
        """See `LLM.complete`. What the server does not know, such as a JSON schema, is left out from then on."""
        settings = {"max_tokens": max_tokens, "temperature": self.temperature, "seed": seed}
        while True:
            options = {
                RENAMED.get(key, key) if key in self._refused_options else key: settings[key] for key in settings
            }
            options["response_format"] = self._response_format(schema)
            options = {k: v for k, v in options.items() if v is not None and k not in self._refused_options}
            try:
                choice = self.server.chat({"model": self._model, "messages": list(messages), **options})
                return self._text(choice, max_tokens)
            except RequestFailedError as failed:
                if not self._leave_out_an_option(failed, options):
                    raise LLMError(self._explain(failed)) from None

    def _response_format(self, schema: dict[str, Any] | None) -> dict[str, Any] | None:
        json_schema = {"name": "answer", "schema": schema, "strict": True}
        formats = [{"type": "json_schema", "json_schema": json_schema}, {"type": "json_object", "value": schema}, None]
        return formats[self._n_refused_formats] if schema else None  # the second has TGI's schema in it

    def _leave_out_an_option(self, failed: RequestFailedError, options: dict[str, Any]) -> bool:
        """Whether something can be left out that the server refused; newer models name such options."""
        if failed.status not in REFUSES_AN_OPTION or failed.too_long or failed.no_credit:
            return False
        refused = next((key for key in OPTIONAL if key in options and key in failed.reason), None)
        if refused:
            self._refused_options.add(refused)
        elif "response_format" in options:
            self._n_refused_formats += 1
        return bool(refused or "response_format" in options)

    def _text(self, choice: dict[str, Any], max_tokens: int) -> str:
        message = choice["message"]
        text = message.get("content") or ""
        self.refusal = "" if text else " ".join(str(message.get("refusal") or "").split())
        self._n_starved = self._n_starved + 1 if not text and choice.get("finish_reason") == "length" else 0
        if self._n_starved > 1:  # every further one would be paid for too
            raise LLMError(
                f"{self.name} used all {max_tokens} tokens before it answered, twice in a row: raise --max_tokens, or "
                "pass an LLM that thinks less."
            )
        if isinstance(text, list):  # of parts, as some servers give it
            text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
        return str(text).encode(errors="replace").decode()  # a lone surrogate cannot be written to a file

    def _explain(self, failed: RequestFailedError) -> str:
        server, again = self.server.name, "run the same command again later"
        if failed.timed_out:
            return (
                f"{self.name} gave no answer within {self.timeout:g} s: raise --timeout, or ask for less at once by "
                "--per_request."
            )
        if failed.status is None:
            return f"{server} cannot be reached ({failed}): check the address and whether a server runs there."
        if failed.status == 200:
            return f"{server} gives no chat completion but {failed.reason!r}: check the address, or {again}."
        if failed.status in (401, 403):
            return f"{server} does not accept the key ({failed}): {self.key_remedy}."
        if failed.no_credit:
            return f"{server} wants to be paid ({failed}): add credit there, or pass another LLM."
        if failed.too_long:
            return (
                f"{self.name} cannot read and write so much at once ({failed}): lower --max_tokens or --per_request, "
                "or pass another LLM."
            )
        if failed.status == 404:
            return f"{server} has no model {self.name!r} ({failed}): check --llm and the address."
        if failed.status == 429:
            return f"{server} allows no more requests for now ({failed}): {again}."
        if failed.status >= 500:
            return f"{server} is out of order ({failed}): {again}, or pass another LLM."
        return f"{server} refused the request ({failed}): check --llm, --max_tokens and --per_request."


class HubLLM(ServerLLM):
    """A model by Inference Providers, paid by the account of the token.

    Args:
        model: its id on the Hub.
        provider: who computes, such as "together"; "auto" leaves it to the settings of the account.
        token: of the Hub; by default HF_TOKEN or what `hf auth login` stored.
    """

    key_remedy = (
        "log in again with `hf auth login`, or set HF_TOKEN to a token that may make calls to Inference Providers"
    )

    def __init__(self, model: str, provider: str = "auto", token: str | None = None, **options: Any):
        token = token or get_token()
        if constants.is_offline_mode():
            raise LLMError(
                "HF_HUB_OFFLINE=1 is set, and Inference Providers are online: unset it, or pass --base_url or --local."
            )
        if token is None or not token.startswith("hf_"):
            received = "none" if token is None else "another key"
            raise LLMError(
                f"Inference Providers expect a token of the Hub (hf_...), received {received}: run `hf auth login`, "
                "set HF_TOKEN, or pass --base_url with the address that the key is for."
            )
        place = "Inference Providers" if provider == "auto" else f"Inference Providers ({provider})"
        super().__init__(model, ROUTER, token, server_name=place, **options)
        self._provider = "" if provider == "auto" else f":{provider}"

    @property
    def _model(self) -> str:
        return self.name + self._provider
