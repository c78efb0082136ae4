"""The banks in recipes/: fifty questions each, sound ones, and files that fit each other."""

import difflib
import itertools
from collections import Counter
from pathlib import Path

import pytest
import yaml

from madkd_hf import AspectBank


RECIPES = Path(__file__).parents[2] / "recipes"
PAPER = ["caltech101", "cub200", "dtd", "fgvc_aircraft", "flowers102", "mini_imagenet", "oxford_pets", "stanford_cars"]


def test_all_of_the_paper_s_datasets_are_there():
    assert [name for name in PAPER if not (RECIPES / name / "aspects.json").is_file()] == []


@pytest.mark.parametrize("name", PAPER)
def test_a_bank_has_fifty_distinct_questions_in_three_groups(name):
    bank = AspectBank.load(RECIPES / name)
    assert len(bank) == 50
    groups = Counter(aspect.group for aspect in bank)
    assert set(groups) == {"visual", "categorical", "environmental"} and min(groups.values()) >= 5
    assert max(len(aspect.id) for aspect in bank) <= 28
    assert max(len(question.split()) for question in bank.questions) <= 20
    for one, other in itertools.combinations(bank.questions, 2):
        assert difflib.SequenceMatcher(None, one, other).ratio() < 0.95, (one, other)


@pytest.mark.parametrize("name", PAPER)
def test_its_recipes_agree(name):
    attach, baseline, distill = (
        yaml.safe_load((RECIPES / name / f"{part}.yaml").read_text()) for part in ("attach", "baseline", "distill")
    )
    assert attach["bank"] == distill["bank"] == f"recipes/{name}/aspects.json"
    assert attach["dataset"] == baseline["dataset"] == distill["dataset"]
    assert attach["teacher"] == distill["teacher"]
    of_the_aspects = {"aspect_alpha", "bank", "teacher"}
    assert {key for key in baseline.keys() | distill.keys() if baseline.get(key) != distill.get(key)} == of_the_aspects
    assert baseline["aspect_alpha"] == 0


def test_the_lora_recipe_is_the_distilled_one_but_for_how_it_trains():
    distill, lora = (
        yaml.safe_load((RECIPES / "oxford_pets" / f"{part}.yaml").read_text()) for part in ("distill", "lora")
    )
    same = {"dataset", "validation_fraction", "bank", "teacher", "aspect_alpha", "pretrained", "crop_scale"}
    assert {key: lora.get(key) for key in same} == {key: distill[key] for key in same}
    assert lora["lora_rank"] > 0 and lora["lora_target_modules"] == ["q_proj", "v_proj"]
