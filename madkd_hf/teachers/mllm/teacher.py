"""A multimodal LLM that answers yes/no questions about images with one number each."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from functools import cached_property
from typing import Any, TypeVar

import torch
import transformers
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL.Image import Image
from transformers import PreTrainedModel, ProcessorMixin

from ...aspects import AspectBank
from ...data.images import to_rgb
from ...text import first_difference, get_logger
from ..base import Preprocessed, Reading, Teacher
from .answers import answer_token_ids, answers_in_float32, log_odds_and_mass
from .identity import digest, tokenizer_digest, weights_digest
from .layout import Layout, image_token_id, plain, too_long
from .loading import load, takes_no_images
from .processors import images_kwargs_of
from .prompt import DATE, PROMPT, chat_text, day
from .selfcheck import allowed, check, least_work
from .strategies import STRATEGIES, read


logger = get_logger(__name__)
Result = TypeVar("Result")


class AspectTeacher(Teacher):
    """Reads the answers of a multimodal LLM at the first answer position, without generating (paper section 3.2).

    Args:
        model: an image-text-to-text model.
        processor: its processor, images included.
        strategy: how questions share work, a name from `strategies.STRATEGIES`, or "auto" for the one with the least
            work of those that a self-check on the first images finds exact. All give the same numbers.
        prompt: the user turn, with `{question}` where the question goes.
        system: a system prompt.
        answer_tokens: two words to read in place of every spelling of yes and no; ("Yes", "No") is the paper's own.
        batch_size: image-question pairs in one forward pass, to begin with; halved whenever memory runs out.
        revision, commit: what was asked for and what that is on the Hub, for the provenance.
        date: what day chat templates that write today's date are told it is, YYYY-MM-DD; the same on every day.

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
        system: str | None = None,
        answer_tokens: tuple[str, str] | None = None,
        batch_size: int = 256,
        revision: str | None = None,
        commit: str | None = None,
        date: str = DATE,
    ):
        if getattr(processor, "image_processor", None) is None:
            raise ValueError(takes_no_images(model.config.name_or_path))
        if model.config.is_encoder_decoder:
            raise ValueError(
                f"{model.config.name_or_path} is an encoder-decoder: expected a decoder-only model, whose next token "
                "after the question is the answer."
            )
        if strategy not in (*STRATEGIES, "auto"):
            raise ValueError(f"Unknown strategy {strategy!r}: expected one of {[*STRATEGIES, 'auto']}.")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} reads nothing: expected at least 1 question at a time.")
        if "{question}" not in prompt:
            raise ValueError(f"The prompt {prompt!r} has no place for the question: write {{question}} where it goes.")
        day(date)
        self.model = model.eval()
        self.processor = processor
        self.strategy = strategy
        self.prompt = prompt
        self.system = system
        self.yes, self.no = answer_token_ids(processor.tokenizer, answer_tokens)
        self.batch_size = batch_size
        self.revision = revision
        self.commit = commit
        self.date = date
        self.plan: dict[str, Any] | None = None
        self._layouts: dict[str, Layout] = {}
        self.preprocesses = self.model.device.type != "cpu"  # there it would only take the cores that compute
        self._lock = threading.Lock()  # reading switches the model's attention for a moment

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
        system: str | None = None,
        answer_tokens: tuple[str, str] | None = None,
        batch_size: int = 256,
        date: str = DATE,
        images_kwargs: Mapping[str, Any] | None = None,
        **model_kwargs: Any,
    ) -> AspectTeacher:
        """Load a teacher from the Hub or from a folder.

        Args:
            model_id_or_path: any multimodal LLM of transformers that takes images.
            revision: branch, tag or commit.
            dtype: what to compute in; "auto" is what the weights are stored in.
            device: where to compute; by default this process's own accelerator, else the CPU.
            strategy, prompt, system, answer_tokens, batch_size, date: see the class.
            trust_remote_code: run code that comes with the model. Off unless you say so.
            images_kwargs: what its processor is to do with images in another way than by default, in its own words,
                such as {"max_patches": 1} of InternVL: fewer tiles or pixels cost less.
            model_kwargs: passed to the model's `from_pretrained` (`device_map`, `quantization_config`,
                `attn_implementation`, ...).
        """
        if isinstance(dtype, str) and dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"Unknown dtype {dtype!r}: expected auto or a torch dtype, such as float32 or bfloat16.")
        model_kwargs.setdefault("device_map", {"": device or PartialState().device})
        options = {"images_kwargs": images_kwargs, "dtype": dtype, **model_kwargs}
        model, processor, commit = load(model_id_or_path, revision, trust_remote_code, **options)
        return cls(model, processor, strategy, prompt, system, answer_tokens, batch_size, revision, commit, date)

    def preprocess(self, images: Sequence[Image], bank: AspectBank) -> Sequence[Image | Preprocessed]:
        layout, prepared = self.layout(bank), [to_rgb(image) for image in images]
        for index, image in enumerate(prepared):
            with suppress(Exception):  # `read` says which image it is
                prepared[index] = Preprocessed(image, layout.inputs(image))
        return prepared

    @torch.inference_mode()
    def read(self, images: Sequence[Image | Preprocessed], bank: AspectBank) -> Reading:
        """Ask every question of the bank about every image.

        Args:
            images: n PIL images, of any mode and size, or what `preprocess` made of them.
            bank: Q questions.

        Returns:
            The log-odds and their mass, [n, Q] each, float32, on the CPU.

        Raises:
            UnreadableImageError: the processor refuses an image.
            ValueError: the model's logits are not finite, or a strategy that was asked for misreads the model.
        """
        images = [image if isinstance(image, Preprocessed) else to_rgb(image) for image in images]
        if not images:
            return Reading(torch.empty(0, len(bank)), torch.empty(0, len(bank)))
        self.prepare([plain(image) for image in images[:2]], bank)
        layout, strategy = self.layout(bank), self.plan["strategy"]
        if self.model.training:
            self.model.eval()
        with self._lock, self._precise():
            answers, self.plan["batch_size"] = self._with_smaller_batches(
                self.plan["batch_size"], lambda size: read(self.model, layout, images, strategy, size, self.reduce)
            )
        reading = Reading(*answers)
        finite = torch.isfinite(reading.logits) & torch.isfinite(reading.mass)
        if not finite.all():
            image, question = (~finite).nonzero()[0].tolist()
            raise ValueError(
                f"The teacher's log-odds are not finite for image {image} of this batch and question "
                f"{bank.ids[question]!r} (computed in {self.model.dtype}): load it with dtype=torch.float32, "
                "or another model."
            )
        return reading

    @torch.inference_mode()
    def prepare(self, images: Sequence[Image], bank: AspectBank) -> dict[str, Any]:
        """Choose how to read, once: `plan`, which is the same for the same model, bank and first images.

        Args:
            images: at least one; the first two are read in every way that the architecture allows.
            bank: the questions.

        Returns:
            `strategy`; `batch_size`, the image-question pairs in one forward pass, halved whenever memory runs out;
            `errors`, by strategy the largest difference in log-odds to the reference, in standard deviations.

        Raises:
            ValueError: the strategy that was asked for does not read what the reference reads.
        """
        if self.plan is not None:
            return self.plan
        images = [to_rgb(image) for image in images[:2]]
        self.check_prompts(bank, images)
        layout = self.layout(bank)
        possible = allowed(self.model, layout)
        names = possible if self.strategy == "auto" else ["full", self.strategy]
        if self.strategy not in ("auto", "full") and not layout.shareable:
            raise ValueError(
                f"{self._name} cannot be read by strategy={self.strategy!r}: its chat template puts the image behind "
                "the question, so that questions share nothing: use strategy='auto'."
            )
        try:
            with self._precise():
                (errors, exact), size = self._with_smaller_batches(
                    self.batch_size, lambda size: check(self.model, layout, images, self.reduce, names, size)
                )
        except (ValueError, RuntimeError) as error:
            out_of_memory = isinstance(error.__cause__, RuntimeError)  # as `_with_smaller_batches` says it
            if (given := images_kwargs_of(self.processor)) and not out_of_memory:
                raise ValueError(
                    f"{self._name} cannot read an image with images_kwargs={given} ({' '.join(str(error).split())}): "
                    "pass other ones, that fit the model."
                ) from error
            raise
        if self.strategy != "auto" and (self.strategy not in exact or self.strategy not in possible):
            error = errors[self.strategy]
            off = "cannot be computed" if error is None else f"are off by {error:.2g} standard deviations"
            why = "" if self.strategy in possible else " (on longer prompts; its configuration rules it out)"
            raise ValueError(
                f"{self._name} is misread by strategy={self.strategy!r}{why}: compared with strategy='full', the "
                f"log-odds of the first images {off}: use strategy='auto'."
            )
        chosen = least_work(exact, layout, images[0], self.model) if self.strategy == "auto" else self.strategy
        if unfit := [name for name in names if name not in exact]:
            logger.warning(f"{self._name} cannot be read right by {', '.join(unfit)}; reading it by {chosen}.")
        self.plan = {"strategy": chosen, "batch_size": size, "errors": errors}
        logger.info(f"Reading {self._name} by {chosen}, {size} questions at a time; errors: {errors}.")
        return self.plan

    def check_prompts(self, bank: AspectBank, images: Sequence[Image] = ()) -> None:
        """Raise ValueError where a question, with one of the images, has too many tokens, or special tokens in it."""
        problem = too_long(self.layout(bank), list(map(to_rgb, images)), self.model.config.get_text_config())
        if problem is not None:
            question, tokens, most = problem
            raise ValueError(
                f"The question {bank.ids[question]!r} is too long for {self._name}: with its image it has {tokens} "
                f"tokens, and the most is {most}: shorten it, or the prompt around it."
            )

    def _with_smaller_batches(self, size: int, step: Callable[[int], Result]) -> tuple[Result, int]:
        """What a step returns that is given the questions in one forward pass, halved until there is memory for it."""
        while True:
            try:
                return step(size), size
            except RuntimeError as error:
                if not should_reduce_batch_size(error):
                    raise
                if size == 1:
                    raise ValueError(
                        f"{self._name} runs out of memory with one question about one image ({error}): load it in a "
                        "smaller dtype, quantized, or over several devices with device_map='auto'."
                    ) from error
            size //= 2
            logger.info(f"Out of memory: from now on {size} questions at a time.")
            clear_device_cache(garbage_collection=True)

    def layout(self, bank: AspectBank) -> Layout:
        """The bank's questions as this model's prompts, cut where they part."""
        if bank.fingerprint not in self._layouts:
            texts = [self._text(question) for question in bank.questions]
            if texts[0] != (again := self._text(bank.questions[0])):
                then, now = first_difference(texts[0], again)
                raise ValueError(
                    f"{self._name} is given another prompt each time that it is asked the same question ({then!r}, "
                    f"then {now!r}): use a chat template that always writes the same."
                )
            self._layouts = {
                bank.fingerprint: Layout(self.processor, texts, image_token_id(self.model, self.processor))
            }
        return self._layouts[bank.fingerprint]

    def _text(self, question: str) -> str:
        return chat_text(self.processor, question, self.prompt, self.system, self.date)

    def prompts(self, bank: AspectBank) -> dict[str, str]:
        """What the model reads: a digest of the `tokens` of all prompts, and the first of them as an `example`."""
        layout = self.layout(bank)
        return {"tokens": layout.digest, "example": layout.texts[0]}

    def _precise(self) -> AbstractContextManager[None]:
        return answers_in_float32(self.model, [*self.yes.values(), *self.no.values()])

    def reduce(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Next-token logits [..., V] as log-odds and mass [...], see `answers.log_odds_and_mass`."""
        return log_odds_and_mass(logits, list(self.yes.values()), list(self.no.values()))

    @property
    def _name(self) -> str:
        return self.model.config.name_or_path or type(self.model).__name__

    @property
    def _identity_name(self) -> str:
        """Of a folder the last part: what is in it decides, not from where or how it was named."""
        name = self.model.config.name_or_path
        return os.path.basename(os.path.realpath(name)) if os.path.isdir(name) else name

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the numbers, beside the `prompts`: the same on the same images gives the same columns."""
        template = self.processor.chat_template or self.processor.tokenizer.chat_template
        quantization = getattr(self.model.config, "quantization_config", None)
        return {
            "model": self._identity_name,
            "revision": self.revision,
            "commit": self.commit,
            "weights": weights_digest(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "tokenizer": tokenizer_digest(self.processor.tokenizer),
            "processor": digest(f"{self.processor.image_processor.to_json_string()}{template}"),
            "quantization": quantization and json.loads(quantization.to_json_string(use_diff=False)),
            "prompt": self.prompt,
            "system": self.system,
            "yes_tokens": self.yes,
            "no_tokens": self.no,
            **({"images_kwargs": dict(given)} if (given := images_kwargs_of(self.processor)) else {}),
            **({} if self.model.dtype == torch.float32 else {"answers_dtype": "float32"}),  # before, they were rounded
        }

    @property
    def provenance(self) -> dict[str, Any]:
        """What is written beside the labels: the identity, and how they were computed."""
        versions = {"transformers": transformers.__version__, "torch": torch.__version__}
        return {
            **self.identity,
            "model": self.model.config.name_or_path,
            "date": self.date,
            "strategy": self.strategy,
            **(self.plan or {}),
            "versions": versions,
        }

    @property
    def summary(self) -> str:
        """By which strategy it has read, and how far that was off on the first images."""
        if self.plan is None:
            return ""
        strategy = self.plan["strategy"]
        if not (error := (self.plan.get("errors") or {}).get(strategy)):
            return f"Read by {strategy}."
        return (
            f"Read by {strategy}; on the first images that was off by {error:.1g} standard deviations from one "
            "forward pass per question."
        )
