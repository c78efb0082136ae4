"""Log-odds are as fine as the hidden states allow, whatever the model computes in."""

from __future__ import annotations

import pytest
import torch
from builders import tiny
from builders.questions import bank
from builders.tiny_mllms import mllm

from madkd_hf import AspectTeacher
from madkd_hf.teachers.mllm import teacher as module


def large_logits(name: str, dtype: torch.dtype) -> AspectTeacher:
    """A model that is sure of itself, as real ones are: logits of 20, where bfloat16 knows multiples of 0.125."""
    model, processor = mllm(name)
    layer, width = model.get_output_embeddings(), model.config.get_text_config().hidden_size
    layer.weight.data *= 20 / layer.weight.data.std() / width**0.5
    return AspectTeacher(model.to(dtype), processor, strategy="full", answer_tokens=("Yes", "No"))


def read(teacher: AspectTeacher) -> torch.Tensor:
    return teacher.read(tiny.images(12), bank()).logits.double()


@pytest.mark.parametrize("name", ["internvl", "llava"])
def test_answers_in_bfloat16_lie_on_no_grid(name, monkeypatch):
    teacher = large_logits(name, torch.bfloat16)
    fine = read(teacher)
    outputs = []  # what the hidden states say in float32, computed by hand over the whole vocabulary
    layer = teacher.model.get_output_embeddings()

    def float32(layer, inputs, logits):
        outputs.append(1)
        return torch.nn.functional.linear(inputs[0].float(), layer.weight.float())

    with monkeypatch.context() as patch:
        patch.setattr(module, "answers_in_float32", lambda *_: torch.no_grad())
        coarse = read(teacher)
        hook = layer.register_forward_hook(float32)
        exact = read(teacher)
        hook.remove()
    assert outputs and len(exact.unique()) == exact.numel() == len(fine.unique())
    assert (coarse * 512 % 1 == 0).double().mean() > 0.9 > 0.5 > (fine * 512 % 1 == 0).double().mean()
    error, before = (fine - exact).abs().mean(), (coarse - exact).abs().mean()
    assert before > 5 * error
    assert teacher.identity["answers_dtype"] == "float32"


def test_a_model_in_float32_is_read_as_ever(monkeypatch):
    teacher = large_logits("internvl", torch.float32)
    fine = read(teacher)
    monkeypatch.setattr(module, "answers_in_float32", lambda *_: torch.no_grad())
    assert torch.equal(fine, read(teacher)) and "answers_dtype" not in teacher.identity
