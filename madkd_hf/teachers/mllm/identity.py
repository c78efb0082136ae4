"""What makes two teachers the same: digests of their parts."""

from __future__ import annotations

import hashlib
import json

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def weights_digest(model: PreTrainedModel) -> str:
    """Of the leading values of every tensor: a retrained model in the same folder is another teacher."""
    content = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        content.update(f"{name}{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            content.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return content.hexdigest()[:16]


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Of how text becomes tokens: vocabulary, merges, normalizer, special tokens; not of how rows are padded."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    content |= {"padding": None, "truncation": None}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    return digest(json.dumps([content, special], sort_keys=True))
