"""An LLM on this machine: any causal language model of transformers, GGUF files included."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import LLMError, Message


class LocalLLM:
    """A causal language model with its chat template; loaded when the first answer is wanted.

    Args:
        model: a Hub id, a folder, a file that ends in .gguf, or "owner/repo:file.gguf" on the Hub. A GGUF file is
            unpacked to `dtype` when it is loaded: as quick and as large as the model it was made from.
        dtype: what to compute in; by default what the weights are in, for GGUF float32, on accelerators bfloat16.
        device: by default an accelerator, if any.
        temperature: of sampling; 0 always takes the likeliest token, and answers the same again.
        trust_remote_code: run code that comes with the model.
    """

    spare_tokens = 128

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        temperature: float | None = 0.7,
        trust_remote_code: bool = False,
    ):
        import torch

        self.model = model
        self._source, file = split_gguf(model)
        self.name = file or (Path(model).resolve().name if Path(model).is_dir() else model)
        self.temperature = 0.7 if temperature is None else temperature
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        self.device = torch.device(device or accelerator or "cpu")
        if file and dtype == "auto":
            dtype = "float32" if self.device.type == "cpu" else "bfloat16"
        self._dtype = dtype
        self._options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        if file:
            if importlib.util.find_spec("gguf") is None:
                raise LLMError(f'Reading {file} needs the package gguf: pip install "madkd_hf[gguf]"')
            self._options["gguf_file"] = file

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """Tokenizer and model, once the first answer is wanted."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self._source, **self._options)
            model = AutoModelForCausalLM.from_pretrained(self._source, dtype=self._dtype, **self._options)
            return tokenizer, model.to(self.device).eval()
        except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise LLMError(
                f"Cannot load the LLM {self.model!r} ({reason[:300]}): expected a Hub id, a folder or a .gguf file "
                "of a causal language model that transformers knows."
            ) from error

    def complete(
        self, messages: Sequence[Message], schema: dict[str, Any] | None = None, max_tokens: int = 1024, seed: int = 0
    ) -> str:
        """See `LLM.complete`; the schema is not enforced."""
        import torch

        tokenizer, model = self._loaded
        inputs = self._tokens(tokenizer, list(messages))
        length, limit = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", None)
        if limit and length + max_tokens > limit:
            raise LLMError(
                f"{self.name} reads {limit} tokens at most; the request has {length} and the answer may have "
                f"{max_tokens}: ask for less by --candidates, --per_request or --max_tokens, or pass another LLM."
            )
        sampling = {"do_sample": True, "temperature": self.temperature, "top_p": 0.95} if self.temperature else {}
        with torch.random.fork_rng(devices=[] if self.device.type == "cpu" else None):
            torch.manual_seed(seed)
            written = model.generate(
                **inputs,
                max_new_tokens=max_tokens,
                pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
                **(sampling or {"do_sample": False}),
            )
        return tokenizer.decode(written[0, length:], skip_special_tokens=True).strip()

    def _tokens(self, tokenizer: Any, messages: list[Message]) -> Any:
        if tokenizer.chat_template:
            tokens = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            tokens = tokenizer("\n\n".join(turn["content"] for turn in messages) + "\n\n", return_tensors="pt")
        return tokens.to(self.device)


def split_gguf(model: str) -> tuple[str, str | None]:
    """The folder or repo, and the GGUF file in it, if `model` names one."""
    if not model.lower().endswith(".gguf"):
        return model, None
    path = Path(model)
    if path.is_file():
        return str(path.parent), path.name
    source, colon, file = model.rpartition(":")
    if not colon:
        raise LLMError(f"There is no file {model}: expected a .gguf file, or owner/repo:file.gguf on the Hub.")
    return source, file
