"""Spaces of two students: one of birds, and one whose classes and questions strangers wrote."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from builders import tiny
from builders.space_students import CLASSES, hostile_bank, make_space, save_student

from madkd_hf import AspectBank
from madkd_hf.exporting.formats import can_export
from madkd_hf.exporting.student import export_student, load_for_export
from madkd_hf.spaces import STATIC
from madkd_hf.spaces.card import SpaceFacts


def pytest_collection_modifyitems(items):
    if not (importlib.util.find_spec("onnxscript") and can_export()):
        for item in items:
            if "/spaces/" in item.path.as_posix():
                item.add_marker(pytest.mark.skip(reason="the extra onnx is not installed"))


def export(student: Path, folder: Path) -> Path:
    """What `madkd export` makes of it, with answers: to write Spaces of it takes no time."""
    model, processor = load_for_export(str(student), True)
    export_student(model, processor, folder, aspects=True, images=tiny.images(8, 48))
    return folder


@pytest.fixture(scope="session")
def birds(tmp_path_factory):
    """A student of three birds and three questions."""
    bank = AspectBank(["Is it red?", "Does it fly?", "Is its beak hooked?"])
    return save_student(tmp_path_factory.mktemp("birds"), ["finch", "heron", "owl"], bank)


@pytest.fixture(scope="session")
def exported(birds, tmp_path_factory):
    return export(birds, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory):
    """The export of a student whose classes and questions strangers wrote."""
    student = save_student(tmp_path_factory.mktemp("strangers"), CLASSES, hostile_bank())
    return export(student, tmp_path_factory.mktemp("strangers-exported"))


@pytest.fixture(scope="session")
def static(exported, tmp_path_factory):
    """A static Space of the birds, with two examples."""
    folder, images = tmp_path_factory.mktemp("static"), tiny.images(2, 48)
    facts = SpaceFacts("Birds", ["you/birds"], ["you/photos"], "mit")
    make_space(exported, folder, STATIC, facts, examples=[(images[0], "finch"), (images[1], "")])
    return folder
