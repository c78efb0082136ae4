"""From next-token logits to log-odds: which tokens say yes, which say no, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# How tokenizers mark a word that follows a space: not at all, as is, byte-level BPE, SentencePiece.
SPACES = ("", " ", "Ġ", "▁")


def answer_token_ids(
    tokenizer: PreTrainedTokenizerBase, answer_tokens: tuple[str, str] | None = None
) -> tuple[dict[str, int], dict[str, int]]:
    """The tokens that say yes and those that say no: two dictionaries from spelling to token id.

    By default every single-token spelling counts: lower, capitalised, upper, with or without a leading space.
    `answer_tokens`, such as ("Yes", "No"), are two words to read in no other spelling: the paper's own target.
    """
    if answer_tokens is None:
        return _spellings(tokenizer, "yes"), _spellings(tokenizer, "no")
    if len(answer_tokens) != 2:
        raise ValueError(f"answer_tokens takes two words, as in ('Yes', 'No'); received {answer_tokens!r}.")
    yes, no = (dict([next(iter(_spellings(tokenizer, word, [word]).items()))]) for word in answer_tokens)
    return yes, no


def _spellings(tokenizer: PreTrainedTokenizerBase, word: str, cases: list[str] | None = None) -> dict[str, int]:
    vocabulary = tokenizer.get_vocab()
    spelling_of: dict[int, str] = {}
    for case in cases or [word, word.capitalize(), word.upper()]:
        encoded = tokenizer.encode(case, add_special_tokens=False)
        if len(encoded) == 1 and encoded[0] != tokenizer.unk_token_id:
            spelling_of.setdefault(encoded[0], tokenizer.convert_ids_to_tokens(encoded[0]))
        for token in (f"{space}{case}" for space in SPACES):
            if token in vocabulary:
                spelling_of.setdefault(vocabulary[token], token)
    if not spelling_of:
        raise ValueError(
            f"{word!r} is no single token for {type(tokenizer).__name__}, so the answer cannot be read from one "
            "position: pass answer_tokens=(yes, no) with two words that are."
        )
    return {spelling: token_id for token_id, spelling in spelling_of.items()}


@contextmanager
def answers_in_float32(model: PreTrainedModel, ids: Sequence[int]) -> Iterator[None]:
    """While this is open, the model's output layer gives the rows of these tokens in float32, from its hidden states.

    A logit of 20 in bfloat16 is a multiple of 0.125, and so were all log-odds. Only the few rows of the answers are
    computed once more; the model's own scaling and soft-capping come after the layer and stay. A layer that is
    quantized or whose weights are elsewhere gives what it gives.
    """
    layer = model.get_output_embeddings()
    if not isinstance(layer, nn.Linear) or not layer.weight.is_floating_point() or layer.weight.dtype == torch.float32:
        yield
        return

    def exact(layer: nn.Linear, inputs: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor | None:
        if layer.weight.is_meta:
            return None
        tokens = torch.tensor(ids, device=layer.weight.device)
        bias = None if layer.bias is None else layer.bias[tokens].float()
        logits = logits.float()
        logits[..., tokens] = nn.functional.linear(inputs[0].float(), layer.weight[tokens].float(), bias)
        return logits

    hook = layer.register_forward_hook(exact)
    try:
        yield
    finally:
        hook.remove()


def log_odds_and_mass(
    logits: torch.Tensor, yes_ids: list[int], no_ids: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reduce next-token logits to one number per question, and to how far it is to be trusted.

    With one token on each side, the sigmoid of the log-odds is the paper's target `softmax([z_yes, z_no])[0]`
    (section 3.2).

    Args:
        logits: [..., V], at the first answer position.

    Returns:
        log-odds [...] `logsumexp(yes) - logsumexp(no)`, and mass [...], the probability of both together; float32.
    """
    logits = logits.float()
    yes = logits[..., yes_ids].logsumexp(-1)
    no = logits[..., no_ids].logsumexp(-1)
    mass = (torch.logaddexp(yes, no) - logits.logsumexp(-1)).exp()
    return yes - no, mass
