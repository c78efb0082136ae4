"""A multimodal LLM that answers yes/no questions about images with one number each."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import transformers
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from ..aspects import AspectBank
from .answers import answer_token_ids, log_odds_and_mass
from .prompt import PROMPT, chat_text
from .strategies import STRATEGIES, choose


@dataclass(frozen=True)
class Reading:
    """What the teacher says of n images.

    Attributes:
        logits: [n, Q] float32 log-odds of yes against no, in the bank's order; the sigmoid is the target.
        mass: [n, Q] float32 in 0..1, the probability that the model put on yes and no together; where it is low,
            the model was not answering the question.
    """

    logits: torch.Tensor
    mass: torch.Tensor


class AspectTeacher:
    """Reads the answers of a multimodal LLM at the first answer position, without generating (paper section 3.2).

    Args:
        model: an image-text-to-text model.
        processor: its processor, images included.
        strategy: how questions share work, a name from `strategies.STRATEGIES`, or "auto" for the cheapest one that
            the model supports. All give the same numbers.
        prompt: the user turn, with `{question}` where the question goes.
        answer_tokens: two words to read in place of every spelling of yes and no; ("Yes", "No") is the paper's own.
        revision: the revision that was asked for, for the provenance.

    Raises:
        ValueError: a model that takes no images or is an encoder-decoder, an unknown strategy, a prompt without
            `{question}`, a tokenizer in which yes or no is no single token.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        strategy: str = "auto",
        prompt: str = PROMPT,
        answer_tokens: tuple[str, str] | None = None,
        revision: str | None = None,
    ):
        if getattr(processor, "image_processor", None) is None:
            raise ValueError(_takes_no_images(model.config.name_or_path))
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{model.config.name_or_path} is an encoder-decoder: expected a decoder-only model, whose next token "
                "after the question is the answer."
            )
        if strategy not in (*STRATEGIES, "auto"):
            raise ValueError(f"Unknown strategy {strategy!r}: expected one of {[*STRATEGIES, 'auto']}.")
        if "{question}" not in prompt:
            raise ValueError(f"The prompt {prompt!r} has no place for the question: write {{question}} where it goes.")
        self.model = model.eval()
        self.processor = processor
        self.prompt = prompt
        self.revision = revision
        self.yes, self.no = answer_token_ids(processor.tokenizer, answer_tokens)
        texts = [chat_text(processor, question, prompt) for question in ("Is it red?", "Is there a large blue shape?")]
        possible = choose(model, processor, texts)
        if strategy == "shared_vision" and possible != "shared_vision":
            raise ValueError(
                f"{model.config.name_or_path or type(model).__name__} cannot share one encoding of the image between "
                "questions (its model takes no image features, or its processor mixes image and question): use "
                "strategy='auto'."
            )
        self.strategy = possible if strategy == "auto" else strategy

    @classmethod
    def from_pretrained(
        cls,
        model_id_or_path: str,
        revision: str | None = None,
        dtype: str | torch.dtype = "auto",
        device: str | torch.device | None = None,
        strategy: str = "auto",
        trust_remote_code: bool = False,
        prompt: str = PROMPT,
        answer_tokens: tuple[str, str] | None = None,
        **model_kwargs: Any,
    ) -> AspectTeacher:
        """Load a teacher from the Hub or from a folder.

        Args:
            model_id_or_path: any image-text-to-text model of transformers.
            revision: branch, tag or commit.
            dtype: what to compute in; "auto" is what the weights are stored in.
            device: where to compute; by default the first accelerator, else the CPU.
            strategy, prompt, answer_tokens: see the class.
            trust_remote_code: run code that comes with the model. Off unless you say so.
            model_kwargs: passed to the model's `from_pretrained` (`device_map`, `quantization_config`, ...).
        """
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"Unknown dtype {dtype!r}: expected auto or a torch dtype, such as float32 or bfloat16.")
        shared = {"revision": revision, "trust_remote_code": trust_remote_code}
        processor = AutoProcessor.from_pretrained(model_id_or_path, **shared)
        if getattr(processor, "image_processor", None) is None:
            raise ValueError(_takes_no_images(model_id_or_path))
        model = AutoModelForImageTextToText.from_pretrained(model_id_or_path, dtype=dtype, **shared, **model_kwargs)
        if "device_map" not in model_kwargs:
            model = model.to(device or _default_device())
        return cls(model, processor, strategy, prompt, answer_tokens, revision)

    @torch.inference_mode()
    def read(self, images: Sequence[Image], bank: AspectBank) -> Reading:
        """Ask every question of the bank about every image.

        Args:
            images: n PIL images, of any mode and size.
            bank: Q questions.

        Returns:
            The log-odds and their mass, [n, Q] each, float32, on the CPU.

        Raises:
            ValueError: the model's logits are not finite.
        """
        texts = [chat_text(self.processor, question, self.prompt) for question in bank.questions]
        read_one = STRATEGIES[self.strategy]
        answers = [
            self._answers(read_one(self.model, self.processor, image.convert("RGB"), texts)) for image in images
        ]
        if not answers:
            return Reading(torch.empty(0, len(bank)), torch.empty(0, len(bank)))
        reading = Reading(*(torch.stack(parts) for parts in zip(*answers)))
        finite = torch.isfinite(reading.logits) & torch.isfinite(reading.mass)
        if not finite.all():
            image, question = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"The teacher's log-odds are not finite for image {image} of this batch and question "
                f"{bank.ids[question]!r} (computed in {self.model.dtype}): load it with dtype=torch.float32, "
                "or another model."
            )
        return reading

    def _answers(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        log_odds, mass = log_odds_and_mass(logits, list(self.yes.values()), list(self.no.values()))
        return log_odds.cpu(), mass.cpu()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers: the same identity on the same images gives the same columns."""
        return {
            "model": self.model.config.name_or_path,
            "revision": self.revision,
            "commit": getattr(self.model.config, "_commit_hash", None),
            "weights": _weights_fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "processor": _digest(f"{self.processor.image_processor.to_json_string()}{self.processor.chat_template}"),
            "prompt": self.prompt,
            "yes_tokens": self.yes,
            "no_tokens": self.no,
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What is written beside the labels: the identity, and how they were computed."""
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        return {**self.identity, "strategy": self.strategy, "versions": versions}


def _takes_no_images(name: str) -> str:
    return (
        f"{name} takes no images (it has no image processor): expected an image-text-to-text model, "
        "such as one of the Hub's pipeline tag of that name."
    )


def _default_device() -> torch.device:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return accelerator or torch.device("cpu")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _weights_fingerprint(model: PreTrainedModel) -> str:
    """A digest of the leading values of every tensor: a retrained model in the same folder is another teacher."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        if not tensor.is_meta:
            digest.update(tensor.flatten()[:64].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
