"""`import madkd_hf` is light, and transformers knows the students whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys

import pytest
from builders.quick_python import quick_python

import madkd_hf


HEAVY = ("torch", "transformers", "datasets", "sklearn", "matplotlib", "jinja2", "peft", "evaluate", "scipy", "pandas")
KNOWN = """
from transformers import CONFIG_MAPPING, AutoModelForImageClassification, AutoModelForObjectDetection
from transformers.pipelines import PIPELINE_REGISTRY
from madkd_hf import MadkdConfig, MadkdDetectionConfig, MadkdForImageClassification, MadkdForObjectDetection
assert CONFIG_MAPPING["madkd"] is MadkdConfig and CONFIG_MAPPING["madkd_detection"] is MadkdDetectionConfig
assert AutoModelForImageClassification._model_mapping[MadkdConfig] is MadkdForImageClassification
assert AutoModelForObjectDetection._model_mapping[MadkdDetectionConfig] is MadkdForObjectDetection
assert {"aspect-classification", "aspect-detection"} <= set(PIPELINE_REGISTRY.get_supported_tasks())
"""


def python(code: str, interpreter: str | None = None) -> str:
    """What a process prints that has imported nothing of Hugging Face yet."""
    done = subprocess.run([interpreter or quick_python(), "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{code}\n{done.stderr}"
    return done.stdout


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, madkd_hf; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code, sys.executable) == "[]\n"
    working = "import torch, transformers, datasets; import sys; before = {*sys.modules}; import madkd_hf; "
    more = "[name for name in {*sys.modules} - before if name.partition('.')[0] != 'madkd_hf']"
    assert python(working + f"print({more})") == "[]\n"


ORDERS = [
    "import madkd_hf; from transformers import AutoConfig, pipeline",
    "from transformers import AutoConfig, pipeline; import madkd_hf",
    "import madkd_hf; from transformers import AutoModelForImageClassification",
    "from transformers import AutoModelForObjectDetection; import madkd_hf",
    "import madkd_hf; from transformers import Trainer",
    "import madkd_hf.students.models.modeling_madkd",
    "import madkd_hf.students.models.configuration_madkd_detection",
    "from transformers import AutoConfig; from madkd_hf import *",
]


@pytest.mark.parametrize("first", [ORDERS[:3], pytest.param(ORDERS[3:], marks=pytest.mark.slow)])
def test_transformers_knows_the_students_in_every_order(first):
    for order in first:
        python(f"{order}\n{KNOWN}")


def test_a_saved_student_is_loaded_by_auto_classes_alone(tmp_path):
    student = "madkd_hf.MadkdForImageClassification.from_backbone"
    python(
        f"import madkd_hf; from transformers import ResNetConfig; bank = madkd_hf.AspectBank(['Is it red?'])\n"
        f"{student}(ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=2), "
        f"id2label={{0: 'a', 1: 'b'}}, bank=bank, pretrained=False).save_pretrained({str(tmp_path)!r})"
    )
    config = (
        f"import madkd_hf; from transformers import AutoConfig; c = AutoConfig.from_pretrained({str(tmp_path)!r})\n"
    )
    assert python(config + "print(type(c).__module__)") == "madkd_hf.students.models.configuration_madkd\n"
    model = "from transformers import AutoModelForImageClassification as A; import madkd_hf\n"
    model += f"print(A.from_pretrained({str(tmp_path)!r}).__module__)"
    assert python(model) == "madkd_hf.students.models.modeling_madkd\n"


def test_all_that_is_public_is_there_and_nothing_else():
    assert {*madkd_hf.__all__} == {*madkd_hf._MODULES} <= {*dir(madkd_hf)}
    assert all(getattr(madkd_hf, name).__name__ == name for name in madkd_hf.__all__)
    assert not hasattr(madkd_hf, "MadkdForEverything")
    with pytest.raises(AttributeError, match="'madkd_hf' has no attribute 'Bank'"):
        _ = madkd_hf.Bank
    with pytest.raises(ImportError, match="'Bank'"):
        from madkd_hf import Bank  # noqa: F401


def test_a_process_that_is_spawned_unpickles_what_is_public():
    code = "from concurrent.futures import ProcessPoolExecutor as P; import multiprocessing as m, madkd_hf\n"
    code += "if __name__ == '__main__':\n with P(1, m.get_context('spawn')) as pool:\n"
    code += "  print(pool.submit(len, madkd_hf.AspectBank(['Is it red?', 'Is it round?'])).result())"
    assert python(code) == "2\n"
