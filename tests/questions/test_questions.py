"""From what LLMs really write to a bank of good questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from madkd_hf import AspectBank
from madkd_hf.llm import LLMError
from madkd_hf.questions import (
    Plan,
    Rules,
    TooFewQuestionsError,
    check_class_names,
    estimate,
    fault,
    open_store,
)
from madkd_hf.questions import generate as ask
from madkd_hf.questions.prompts import GROUPS
from madkd_hf.questions.store import unique_id


ROOT = Path(__file__).parents[2]
BANKS = sorted(ROOT.glob("recipes/*/aspects.json"))
COLORS, SHAPES = ("black", "red", "blue"), ("circle", "triangle")
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


def test_good_questions():
    for question in [
        "Is there a red shape?",
        "Is there a circle?",  # no class, though a word of some
        "In the image, is there a curved edge?",
        "Does it have two or more corners?",
        "Is the bird perched on a branch or a twig?",
        "Isn't there an edge?",
        "Is a US flag visible?",
        "Does the sign show an X?",
        "Is the outline X-shaped?",
        "Is over 50% of the image sky?",
        "Is the animal in or near water?",
        "Is the car a van or a minivan?",
        "Is this a tree, a shrub or a fern?",
        "Can you see the sky?",
        "图中有红色吗？",
        "هل الشكل أحمر؟",
    ]:
        assert fault(question, Rules(tuple(CLASSES))) is None, question


def test_what_is_wrong_is_named():
    for question, reason in [
        ("", "no question"),
        ("The shape is red.", "no question"),
        ("?", "no words"),
        ("How many corners are there?", "begins with 'how'"),
        ("Ist die Form rot?", "begins with 'ist'"),
        ("Sure, is it red?", "begins with 'sure'"),
        ("Is it red? Is it blue?", "more than one"),
        ("Is it a day scene, or is it a night scene?", "one of two"),
        ("Is it a bird or a plane?", "one of two"),
        ("Would you like more questions?", "about the reader"),
        ("Is there an object in the image?", "about nothing"),
        ("Does it have X edges?", "a pattern"),
        ("Does it have [color] edges?", "a pattern"),
        ("Is there a black circle?", "names the class 'black circle'"),
        ("Are there BLACK-Circles in it?", "names the class 'black circle'"),
        ("Is it red\u202e?", "cannot be seen"),
        ("Is " + "very " * 30 + "red?", "more than 25 words"),
        ("Is it " + "r" * 200 + "?", "more than 160 characters"),
    ]:
        assert reason in fault(question, Rules(tuple(CLASSES))), question


def test_rules_can_be_loosened():
    assert fault("Is there a black circle?", Rules(tuple(CLASSES), allow_class_names=True)) is None
    assert fault("Ist die Form rot?", Rules(any_language=True)) is None


def test_class_names_are_found_as_people_say_them():
    for class_name, question in [
        ("001.Black_footed_Albatross", "Is it a black-footed albatross?"),
        ("tench, Tinca tinca", "Is this a Tinca tinca?"),
        ("n02123394_Persian_cat", "Are Persian cats shown?"),
        ("Curaçao", "Is it curacao?"),
        ("daisy", "Are there daisies?"),
        ("church", "Are there churches?"),
        ("Knife", "Is there a steak knife?"),
        ("box", "Are there boxes?"),
        ("potato", "Are there potatoes?"),
        ("GoldenRetriever", "Is it a golden retriever?"),
        ("fire truck", "Is it a firetruck?"),
        ("iPhone", "Are there iPhones?"),
        ("lady's slipper", "Is it a lady’s slipper?"),
        ("金毛犬", "图中有金毛犬吗？"),
        ("고양이", "고양이가 있습니까?"),
    ]:
        assert fault(question, Rules((class_name,))) == f"names the class {class_name!r}"
        assert fault("Is it a house?", Rules((class_name,))) is None


def test_class_names_are_whole_words():
    for class_name in ("cat", "ring", "bus", "spring bus", "doe", "GoldenRetriever"):
        assert fault("Does it show catching a golden spring in business?", Rules((class_name,))) is None


def test_class_names_that_nearly_every_question_has_are_told_once(caplog):
    generate(
        ["A", "I", "the", "X", "cat"], Scripted("Is there a red cat?\nIs it an X?\nIs there the sky?"), "", Plan(1, 1)
    )
    (told,) = [record.getMessage() for record in caplog.records]
    assert "('A', 'I', 'the'): pass longer ones" in told
    assert fault("Is there the red sky?", Rules(("A", "the"))) is None
    assert fault("Is it an X?", Rules(("X",))) == "names the class 'X'"


def test_the_same_said_again_and_not_the_same():
    for one, other in [
        ("Is there a red shape?", "is there a  RED shape ?"),
        ("Is there a red shape?", "Does the image show a red shape?"),
        ("Is there a red shape?", "Is there not a red shape?"),
        ("Does it have stripes?", "Is it striped?"),
        ("Is the café old?", "Is the cafe old?"),
        ("Is the bird's beak red?", "Does the bird have a red beak?"),
        ("Is the head darker than the body?", "In the image, is the head darker than the body?"),
    ]:
        assert fault(other, Rules(), [one]).startswith(("repeats", "says the same as")), other
    for one, other in [
        ("Is there a red shape?", "Is there a blue shape?"),
        ("Does it have two engines?", "Does it have three engines?"),
        ("Is there a circle?", "Is there a circle in the centre?"),
        ("Is the bear big?", "Is the beard big?"),
        ("Is the head darker than the body?", "Is the body much darker than the head?"),
        ("Is the circle left of the square?", "Is the square left of the circle?"),
    ]:
        assert fault(other, Rules(), [one]) is None, other


def test_the_banks_of_the_recipes_are_good_and_without_duplicates():
    for path in BANKS:
        bank = AspectBank.load(path)
        for position, aspect in enumerate(bank):
            assert fault(aspect.question, Rules(), bank.questions[:position]) is None


def test_ids_are_short_unique_and_from_the_llm_where_it_gives_good_ones():
    assert unique_id("Beak Colour", "Is it?", set()) == "beak_colour"
    assert unique_id("beak colour", "Is it?", {"beak_colour"}) == "beak_colour_2"
    for name in ("", "q1", "3", "Question_2", "?!", "a very long name " * 9):
        assert unique_id(name, "Is there a curved red beak?", set()) == "curved_red_beak"
    assert unique_id("", "图中有红色吗？", {"aspect"})


class Scripted:
    """An LLM that says what it is told to, and keeps what it was asked."""

    name, spare_tokens = "scripted", 0

    def __init__(self, *script):
        self.script, self.asked, self.seeds = list(script), [], []

    def complete(self, messages, schema=None, max_tokens=1024, seed=0):
        self.asked.append(messages[-1]["content"])
        self.seeds.append(seed)
        said = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(said, BaseException):
            raise said
        return said


def generate(class_names, llm, domain, plan, rules=None, folder=None):
    return ask(open_store(class_names, llm.name, domain, rules, folder), llm, plan)


def listed(*words):
    return "\n".join(f"{number}. Is it {word}?" for number, word in enumerate(words, 1))


SIX = [listed("red", "blue"), listed("big", "old"), listed("wet", "hot")]


def test_rounds_until_there_are_enough_and_then_a_choice():
    llm = Scripted(*SIX, "[6, 1]")
    made = generate(CLASSES, llm, "coloured shapes", Plan(6, 2, per_request=2))
    assert made.candidates.questions == [f"Is it {word}?" for word in ("red", "blue", "big", "old", "wet", "hot")]
    assert [aspect.group for aspect in made.candidates] == [group for group in GROUPS for _ in range(2)]
    assert made.candidates.ids == ["red", "blue", "big", "old", "wet", "hot"]
    assert (made.selected.questions, made.n_chosen) == (["Is it hot?", "Is it red?"], 2)
    for word in ("black circle", "coloured shapes", "2 questions", "visual"):
        assert word in llm.asked[0]
    assert "Is it blue?" not in llm.asked[0] and "Is it blue?" in llm.asked[1]
    assert len(set(llm.seeds[:3])) == 3


def test_what_is_no_good_falls_and_another_round_is_asked(tmp_path):
    bad = "1. Is it a black circle?\n2. What is it?\n3. Is it red?\n4. Is it red?\n"
    made = generate(CLASSES, Scripted(bad, "", listed("big")), "", Plan(2, 2), folder=tmp_path)
    assert made.candidates.questions == ["Is it red?", "Is it big?"]
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["reason"].split(":")[0].split(" '")[0] for row in rows] == [
        "names the class",
        "not for yes or no",
        "repeats",
        "an empty answer",
    ]
    assert [row["round"] for row in rows] == [0, 0, 0, 1]


def test_all_good_ones_of_an_answer_are_kept():
    made = generate(CLASSES, Scripted(listed("red", "big", "old", "wet"), "[4]"), "", Plan(2, 1))
    assert (len(made.candidates), made.selected.questions) == (4, ["Is it wet?"])


def test_one_is_told_as_one(tmp_path):
    llm = Scripted("Is it red?\nIs it a bird or a plane?")
    with pytest.raises(TooFewQuestionsError) as caught:
        generate(CLASSES, llm, "", Plan(2, 2, max_rounds=1), folder=tmp_path)
    told = str(caught.value)
    for part in (
        "after 1 request to",
        "of 2 proposals 1 were rejected: 1 asks for one of two. ",
        "candidates.jsonl keeps 1 good question;",
    ):
        assert part in told
    with pytest.raises(ValueError, match="from 1 candidate:"):
        Plan(1, 2)


def test_too_few_are_told_with_reasons_and_kept(tmp_path):
    llm = Scripted(listed("red", "big") + "\n3. Is it a red circle?\n4. What?")
    with pytest.raises(TooFewQuestionsError) as caught:
        generate(CLASSES, llm, "", Plan(9, 5, max_rounds=2), folder=tmp_path)
    told = str(caught.value)
    for part in (
        "2 of 9 good questions",
        "2 requests to scripted",
        "8 proposals 6 were",
        "2 names the class",
    ):
        assert part in told
    for part in (
        "2 repeats",
        "--max_rounds",
        "--candidates 2 --keep 2",
        "candidates.jsonl keeps 2 good questions; the same",
    ):
        assert part in told
    assert len((tmp_path / "candidates.jsonl").read_text().splitlines()) == 2
    with pytest.raises(TooFewQuestionsError, match="--candidates 2, which are there"):
        generate(CLASSES, llm, "", Plan(9, 2, max_rounds=0), folder=tmp_path)
    assert len(generate(CLASSES, llm, "", Plan(2, 2), folder=tmp_path).selected) == 2
    assert len(llm.asked) == 2


def test_what_was_interrupted_goes_on_where_it_was(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        generate(CLASSES, Scripted(SIX[0], KeyboardInterrupt()), "", Plan(6, 2, per_request=2), folder=tmp_path)
    with (tmp_path / "candidates.jsonl").open("a") as file:
        file.write('{"round": 1, "id": "hal')  # killed while writing
    llm = Scripted(*SIX[1:], "[6, 1]")
    resumed = generate(CLASSES, llm, "", Plan(6, 2, per_request=2), folder=tmp_path)
    whole = generate(CLASSES, Scripted(*SIX, "[6, 1]"), "", Plan(6, 2, per_request=2))
    assert resumed.candidates.fingerprint == whole.candidates.fingerprint
    assert [aspect.group for aspect in resumed.candidates] == [aspect.group for aspect in whole.candidates]
    assert llm.seeds[0] == 1
    again = Scripted(AssertionError("asked again"))
    assert generate(CLASSES, again, "", Plan(6, 2), folder=tmp_path).selected.ids == resumed.selected.ids


def test_a_last_row_without_its_line_break_counts_and_looking_changes_nothing(tmp_path):
    generate(CLASSES, Scripted(listed("red", "a black circle", "big")), "", Plan(2, 2), folder=tmp_path)
    good, bad = tmp_path / "candidates.jsonl", tmp_path / "rejected.jsonl"
    good.write_bytes(good.read_bytes()[:-1])
    with bad.open("a") as file:
        file.write('{"round": 1, "id": "hal')
    before = good.read_bytes(), bad.read_bytes()
    loose = Rules(allow_class_names=True)
    store = open_store(CLASSES, "scripted", "", loose, tmp_path)
    assert store.questions == ["Is it red?", "Is it big?", "Is it a black circle?"]
    assert (good.read_bytes(), bad.read_bytes()) == before
    made = generate(CLASSES, Scripted(listed("old") + "\n2. What?"), "", Plan(4, 4), loose, tmp_path)
    assert made.candidates.questions == [*store.questions, "Is it old?"]
    assert [json.loads(line)["question"] for line in good.read_text().splitlines()] == made.candidates.questions
    assert [json.loads(line)["question"] for line in bad.read_text().splitlines()] == [
        "Is it a black circle?",
        "What?",
    ]


def test_an_llm_that_fails_in_between_costs_nothing(tmp_path):
    with pytest.raises(LLMError, match="no power. .*jsonl keeps 2 good questions; the same command goes on"):
        generate(CLASSES, Scripted(SIX[0], LLMError("no power.")), "", Plan(6, 2), folder=tmp_path)


def test_a_broken_line_in_the_middle_is_told(tmp_path):
    generate(CLASSES, Scripted(listed("red", "big", "old")), "", Plan(3, 3), folder=tmp_path)
    lines = (tmp_path / "candidates.jsonl").read_text().splitlines()
    (tmp_path / "candidates.jsonl").write_text("\n".join([lines[0], "oops", lines[2]]) + "\n")
    with pytest.raises(ValueError, match="after line 1"):
        generate(CLASSES, Scripted(""), "", Plan(3, 3), folder=tmp_path)


def test_another_task_is_refused_in_the_same_folder(tmp_path):
    generate(CLASSES, Scripted(listed("red")), "shapes", Plan(1, 1), folder=tmp_path)
    for names, llm, domain, expected in [
        (["a", "b"], "scripted", "shapes", "another class name"),
        (CLASSES, "scripted", "birds", "another domain"),
        (CLASSES, "x", "shapes", "another llm"),
    ]:
        with pytest.raises(ValueError, match=f"{expected} .*pass another --output_dir"):
            open_store(names, llm, domain, folder=tmp_path)
    assert open_store(CLASSES, "x", "shapes", folder=tmp_path, change_llm=True).task.llm == "x"


def test_other_rules_judge_anew_what_is_there(tmp_path):
    llm = Scripted(listed("red", "a black circle", "big"))
    generate(CLASSES, llm, "", Plan(2, 2), folder=tmp_path)
    loose = open_store(CLASSES, "scripted", "", Rules(allow_class_names=True), tmp_path)
    assert loose.questions == ["Is it red?", "Is it big?", "Is it a black circle?"]
    assert open_store(CLASSES, "scripted", "", Rules(), tmp_path).questions == ["Is it red?", "Is it big?"]


def test_a_choice_is_asked_for_again_and_then_filled():
    for answers, n_chosen, expected in [
        (["[3]", "[3, 1]"], 2, ["old", "red"]),
        (["I cannot decide.", "[2, 3]"], 2, ["big", "old"]),
        (["none"], 0, ["red", "big"]),
        (["[3]", "", ""], 1, ["old", "red"]),
        (["[1, 2, 3]"], 2, ["red", "big"]),
    ]:
        made = generate(CLASSES, Scripted(listed("red", "big", "old"), *answers), "", Plan(3, 2))
        assert (made.selected.ids, made.n_chosen) == (expected, n_chosen)


def test_class_names_and_plans_are_checked():
    for names, expected in [([], "0 class names"), (["cat"], "1 class name given"), (["cat", " "], "2 of 2 is empty")]:
        with pytest.raises(ValueError, match=expected):
            check_class_names(names)
    with pytest.raises(ValueError, match="twice"):
        check_class_names(["a", "a "])
    for options, expected in [
        ({"candidates": 3, "keep": 5}, "5 questions cannot be selected from 3"),
        ({"keep": 0}, "keep is 0"),
        ({"per_request": 0}, "per_request is 0"),
        ({"groups": []}, "groups are"),
        ({"groups": ["a", "A"]}, "groups are"),
        ({"groups": ["a\x1b[2J"]}, "is no short text"),
        ({"max_rounds": -1}, "max_rounds is -1"),
    ]:
        with pytest.raises(ValueError, match=expected):
            Plan(**options)


def test_the_estimate_is_what_a_perfect_llm_takes():
    llm = Scripted(
        *(listed(*(f"{letter}{number}x as in a typical question" for number in range(20))) for letter in "abcdef"),
        "[1]",
    )
    plan = Plan(60, 30)
    expected = estimate(open_store(CLASSES, "scripted"), llm, plan)
    generate(CLASSES, llm, "", plan)
    assert expected.requests == 4 and len(llm.asked) <= expected.most_requests
    assert expected.tokens_in == pytest.approx(sum(map(len, llm.asked[:4])) / 4, rel=0.35)
    assert expected.cost(1e6, 0)[0] == expected.tokens_in
    assert expected.cost(1, 2)[1] > expected.cost(1, 2)[0]
