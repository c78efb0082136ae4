"""LoRA: a student whose backbone is adapted and whose head is trained in full. Needs peft."""

from __future__ import annotations

import copy
import inspect
import re
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..base.saved import ADAPTER
from ..models.modeling_madkd import MadkdForImageClassification, head_parameters


try:
    from peft import LoraConfig, PeftConfig, PeftModel, PeftType
    from peft.utils import load_peft_weights, set_peft_model_state_dict
except ImportError as error:
    raise ImportError('LoRA needs peft, which is not installed: pip install "madkd_hf[peft]"') from error


ALL_LINEAR = "all-linear"
OF_A_RUN = {"base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping", "exclude_modules"}


class LoraStudent(PeftModel):
    """A `PeftModel` that leaves behind what everybody can load: the merged student, the adapter beside it."""

    targets: str | list[str]  # the target modules as they were asked for
    checkpointed = False  # whether layers are computed again in the backward pass, as of the last call of `train`

    def merged(self) -> MadkdForImageClassification:
        """An ordinary student with the same outputs; this one stays as it is."""
        student = copy.deepcopy(self.base_model).merge_and_unload()
        return student.requires_grad_(True).train(self.training)

    def to_plain(self) -> PreTrainedModel:
        """See `MadkdForImageClassification.to_plain`."""
        return self.merged().to_plain()

    def save_pretrained(self, save_directory: str | Path, is_main_process: bool = True, **kwargs: Any) -> None:
        """The merged student in the folder, the adapter and the head in its folder `adapter`."""
        if not is_main_process:
            return
        kwargs = {name: value for name, value in kwargs.items() if name != "state_dict"}  # of the adapted one
        self.merged().save_pretrained(save_directory, **kwargs)
        beside = Path(save_directory) / ADAPTER
        super().save_pretrained(str(beside))
        (beside / "README.md").unlink(missing_ok=True)  # an empty form: the card is the student's

    def load(self, adapter: str | Path, merged: MadkdForImageClassification) -> None:
        """Put the adapter in a folder into this student, beside which `merged` was saved.

        Raises:
            ValueError: it is one of another peft_config, or of another backbone.
        """
        config_here, saved = self.peft_config["default"], PeftConfig.from_pretrained(str(adapter))
        for name in sorted(set(config_here.to_dict()) - OF_A_RUN):
            expected_now, before = (_comparable(getattr(config, name, None)) for config in (config_here, saved))
            if expected_now != before:
                raise ValueError(
                    f"The adapter in {adapter} was trained with {name}={before} and peft_config has {name}="
                    f"{expected_now}: pass the same peft_config, or start anew."
                )
        set_peft_model_state_dict(self, load_peft_weights(str(adapter), device="cpu"))
        expected = merged.state_dict()
        for name, value in self.merged().state_dict().items():
            trained_with = expected[name].to(value)
            if value.is_floating_point() and (value - trained_with).norm() > 1e-2 * trained_with.norm():
                raise ValueError(
                    f"The adapter in {adapter} was trained on other backbone weights than the model's ({name} "
                    "differs): build the model from the same backbone and revision, or start anew."
                )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As usual, but for gradient checkpointing, which with `use_reentrant` gives no gradient to the adapters of a
        layer unless what enters the layer has one: the pixels get it, for the embeddings are frozen."""
        if self.training and self.checkpointed and "pixel_values" in kwargs:
            kwargs["pixel_values"] = kwargs["pixel_values"].detach().requires_grad_()
        return super().forward(*args, **kwargs)

    def train(self, mode: bool = True) -> LoraStudent:
        """As usual, but batch norms of the frozen backbone keep their statistics, which no adapter holds."""
        super().train(mode)
        self.checkpointed = any(getattr(module, "gradient_checkpointing", False) for module in self.modules())
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and not any(
                parameter.requires_grad for parameter in module.parameters()
            ):
                module.eval()
        return self

    def hyperparameters(self) -> dict[str, Any]:
        """For the card."""
        config = self.peft_config["default"]
        targets = self.targets if isinstance(self.targets, str) else ", ".join(sorted(self.targets))
        names = {"lora_rank": config.r, "lora_alpha": config.lora_alpha, "lora_dropout": config.lora_dropout}
        return names | {"lora_target_modules": targets}


def adapt(model: MadkdForImageClassification, peft_config: LoraConfig) -> LoraStudent:
    """The student, changed in place, with adapters in its backbone; its head is trained in full, the rest is frozen.

    `target_modules` are by default all linear layers of the backbone; the head, whatever its name, joins
    `modules_to_save`.

    Raises:
        ValueError: no student, no LoRA, or no layer that could be adapted; in one sentence.
    """
    if not isinstance(model, MadkdForImageClassification):
        raise ValueError(
            f"peft_config adapts a MadkdForImageClassification without adapters; received {type(model).__name__}: "
            "pass the student itself as model."
        )
    if not isinstance(peft_config, PeftConfig) or peft_config.peft_type != PeftType.LORA:
        raise ValueError(f"peft_config must be a LoraConfig of peft; received {type(peft_config).__name__}.")
    config, heads = copy.deepcopy(peft_config), head_modules(model)
    config.task_type = None  # peft knows none of images
    config.base_model_name_or_path = model.config.base_model or ""  # None would become a folder of this machine
    config.revision = model.config.base_model_revision
    target = config.target_modules or ALL_LINEAR
    if isinstance(target, str) and target.lower() == ALL_LINEAR:
        config.target_modules = set(linear_modules(model))
    backbone = type(model.backbone).__name__
    if not config.target_modules:
        raise ValueError(
            f"LoRA adapts linear layers, and {backbone} has none beside its head: name other layers as target_modules "
            f"({', '.join(_names_of(model, nn.Conv2d)) or 'none could be'}), or train it whole, without peft_config."
        )
    config.modules_to_save = sorted({*(config.modules_to_save or []), *heads})
    try:
        adapted = LoraStudent(model, config)
    except ValueError as error:
        reason = inspect.cleandoc(str(error)).splitlines()[0].split(". ")[0].rstrip(".")
        if not re.search("target.modules?", str(error), re.IGNORECASE):
            raise ValueError(f"peft_config cannot be used, as peft says: {reason}.") from error
        raise ValueError(
            f"peft_config does not fit {backbone}: expected target_modules among "
            f"{', '.join(_names_of(model, (nn.Linear, nn.Conv2d)))}; received {_comparable(target)} ({reason})"
            "; leave them out to adapt all linear layers."
        ) from error
    config = adapted.peft_config["default"]
    config.target_modules = _comparable(config.target_modules)  # a set would be saved in another order every time
    adapted.targets = target if isinstance(target, str) else sorted(target)
    return adapted


def head_modules(model: MadkdForImageClassification) -> list[str]:
    """The layers with one row per output, by their names in the student: mostly `backbone.classifier`."""
    names = head_parameters(model.config.backbone_config)
    return sorted({f"backbone.{name.rpartition('.')[0]}" for name in names})


def linear_modules(model: MadkdForImageClassification) -> list[str]:
    """The backbone's linear layers, without the head and without those that torch's attention reads past them."""
    heads = head_modules(model)
    past = [f"{name}.out_proj" for name, layer in model.named_modules() if isinstance(layer, nn.MultiheadAttention)]
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in linear if name not in {*heads, *past}]


def _names_of(model: MadkdForImageClassification, kind: Any) -> list[str]:
    """Last parts of names, as target_modules takes them."""
    heads = head_modules(model)
    names = [name for name, module in model.named_modules() if isinstance(module, kind) and name not in heads]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in names))


def _comparable(value: Any) -> Any:
    value = getattr(value, "value", value)
    return sorted(value) if isinstance(value, (set, list, tuple)) else value
