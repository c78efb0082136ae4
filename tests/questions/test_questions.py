"""From what LLMs really write to a bank of good questions."""

from __future__ import annotations

import itertools
import json
import random
import time
from pathlib import Path

import pytest

from madkd_hf import Aspect, AspectBank
from madkd_hf.questions import (
    LLMError,
    Plan,
    Rules,
    TooFewQuestionsError,
    check_class_names,
    estimate,
    fault,
    generate,
    open_store,
)
from madkd_hf.questions.parsing import parse_choice, parse_questions
from madkd_hf.questions.prompts import GROUPS, ask_simply, examples
from madkd_hf.questions.store import Store, Task, unique_id
from madkd_hf.questions.validation import similarity


ROOT = Path(__file__).parents[2]
BANKS = sorted(ROOT.glob("recipes/*/aspects.json"))
COLORS, SHAPES = ("black", "red", "blue"), ("circle", "triangle")
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
WINGS, ROUND = "Does it have wings?", "Is the outline round?"

# What LLMs write when they are asked for two questions, as it comes.
UGLY = {
    "the JSON that was asked for": f'{{"questions": [{{"id": "w", "question": "{WINGS}", "group": "visual"}}, '
    f'{{"id": "r", "question": "{ROUND}", "group": "visual"}}]}}',
    "a bare list": f'[{{"question": "{WINGS}"}}, {{"question": "{ROUND}"}}]',
    "a list of texts": f'["{WINGS}", "{ROUND}"]',
    "fenced, with chatter around": f'Sure! Here are 2 questions:\n\n```json\n{{"questions": ["{WINGS}", "{ROUND}"]}}\n'
    "```\n\nLet me know if you need more!",
    "a fence that is never closed": f'```json\n[{{"question": "{WINGS}"}},\n{{"question": "{ROUND}"}}]',
    "trailing commas": f'{{"questions": [{{"question": "{WINGS}",}}, {{"question": "{ROUND}",}},],}}',
    "cut in the middle": f'{{"questions": [{{"id": "w", "question": "{WINGS}", "group": "visual"}}, {{"id": "r", '
    f'"question": "{ROUND}", "group": "visual"}}, {{"id": "x", "question": "Does the ob',
    "cut in the first object": f'{{"questions": {{"a": "{WINGS}", "b": "{ROUND}", "c": "Does the',
    "single quotes": f"[{{'question': '{WINGS}'}}, {{'question': '{ROUND}'}}]",
    "comments in it": f'[\n  "{WINGS}", // the first\n  "{ROUND}"\n]',
    "two values one after the other": f'{{"question": "{WINGS}"}}\n{{"question": "{ROUND}"}}',
    "by group": f'{{"visual": ["{WINGS}"], "categorical": ["{ROUND}"]}}',
    "ids as keys": f'{{"wings": "{WINGS}", "round": "{ROUND}"}}',
    "other keys": f'[{{"Question": "{WINGS}", "Answer": "yes"}}, {{"Question": "{ROUND}", "Answer": "no"}}]',
    "thought aloud before": f'<think>The user wants ["Is this JSON?"]. Hmm, 1. Is it?</think>\n["{WINGS}", "{ROUND}"]',
    "thoughts without a beginning": f"Is it so? Maybe.\n</think>\n1. {WINGS}\n2. {ROUND}",
    "a numbered list": f"1. {WINGS}\n2. {ROUND}",
    "brackets and no spaces": f"1){WINGS}\n2){ROUND}",
    "bullets": f"- {WINGS}\n* {ROUND}",
    "dots and dashes": f"• {WINGS}\n– {ROUND}",
    "bold": f"1. **{WINGS}**\n2. **{ROUND}**",
    "bold numbers": f"**1.** {WINGS}\n**2.** {ROUND}",
    "quotes": f'1. "{WINGS}"\n2. “{ROUND}”',
    "labels": f"Question 1: {WINGS}\nQuestion 2: {ROUND}",
    "questions and answers": f"Q1: {WINGS}\nA1: Yes\n\nQ2: {ROUND}\nA2: No, it is not.",
    "answers behind": f"1. {WINGS} (Yes/No)\n2. {ROUND} Yes or no",
    "headings": f"### Visual aspects\n1. {WINGS}\n\n**Categorical:**\n1. {ROUND}",
    "names in front": f"1. **Wings**: {WINGS}\n2. **Outline**: {ROUND}",
    "a table": f"| id | question | group |\n|---|---|---|\n| wings | {WINGS} | visual |\n| round | {ROUND} | visual |",
    "two on a line": f"{WINGS} {ROUND}",
    "chatter around": f"Here are some questions about visual aspects:\n\n{WINGS}\n{ROUND}\n\nI hope this helps.",
    "windows line ends": f"1. {WINGS}\r\n2. {ROUND}\r\n",
    "a quotation": f"> 1. {WINGS}\n> 2. {ROUND}",
    "single quotes in a list": f"['{WINGS}', '{ROUND}']",
    "single quotes and JSON's true": f"{{'done': true, 'questions': ['{WINGS}', '{ROUND}']}}",
    "full-width brackets": f"1）{WINGS}\n（2） {ROUND}",
    "full-width numbers": f"１．{WINGS}\n２. {ROUND}",
    "ideographic commas": f"1、{WINGS}\n2、{ROUND}",
    "a thought that ends after the JSON": f'["{WINGS}", "{ROUND}"]\n</think>',
    "a thought that ends after the text": f"1. {WINGS}\n2. {ROUND}\n</think>\n",
    "thought aloud before and after": f"<think>a?</think>\n{WINGS}\n{ROUND}\n<think>Is it good?</think>",
    "other tags": f"<reasoning>Is it so?</reasoning>{WINGS}\n{ROUND}",
    "objects that are never closed": f'[{{"question": "{WINGS}", {{"question": "{ROUND}"]',
    "a text that is never closed": f'[\n  "{WINGS},\n  "{ROUND}"\n]',
    "line breaks in a text": f'["{WINGS.replace(" wings", chr(10) + "wings")}", "{ROUND}"]',
    "keys without quotes": f'{{questions: [{{question: "{WINGS}"}}, {{question: "{ROUND}"}}]}}',
    "braces for brackets": f'{{"{WINGS}", "{ROUND}"}}',
    "curly quotes": f"[“{WINGS}”, “{ROUND}”]",
    "brackets in the chatter": f'Here [as asked, 2]:\n["{WINGS}", "{ROUND}"]',
    "chatter in brackets and a list": f"Here [2 visual aspects]:\n1. {WINGS}\n2. {ROUND}",
}
AS_JSON = json.dumps({"questions": [{"question": WINGS, "group": "visual"}, {"question": ROUND}]})
UGLY |= {
    "JSON within JSON": json.dumps(AS_JSON),
    "JSON within JSON within JSON": json.dumps(json.dumps(AS_JSON)),
    "a call of a function": json.dumps({"name": "answer", "arguments": AS_JSON}),
    "a call of a function, cut": json.dumps({"name": "answer", "arguments": AS_JSON[:-2] + ', {"que'})[:-6],
}


@pytest.mark.parametrize("completion", UGLY.values(), ids=UGLY)
def test_questions_are_found_in_what_llms_write(completion):
    assert [raw.question for raw in parse_questions(completion, list(GROUPS))] == [WINGS, ROUND]


def test_ids_and_groups_are_read_where_they_are():
    def first(name):
        raw = parse_questions(UGLY[name], list(GROUPS))[0]
        return raw.id, raw.group

    assert first("the JSON that was asked for") == ("w", "visual")
    assert first("ids as keys") == ("wings", "")
    assert first("a table") == ("wings", "visual")
    assert first("names in front") == ("Wings", "")
    for name in ("by group", "headings"):
        assert [raw.group for raw in parse_questions(UGLY[name], list(GROUPS))] == ["visual", "categorical"]


def test_apostrophes_in_single_quotes():
    beak = "Is the bird's beak red?"
    assert [raw.question for raw in parse_questions(f"['{beak}', '{ROUND}']")] == [beak, ROUND]


@pytest.mark.parametrize(
    "completion", ["", "   \n", "I cannot help with that.", "{}", "[]", "```\n```", "<think>Is it"]
)
def test_nothing_is_found_where_nothing_is(completion):
    assert parse_questions(completion) == []


def test_statements_are_kept_to_be_told():
    assert [raw.question for raw in parse_questions("1. The shape is red.\n2. Colour of the shape")] == [
        "The shape is red.",
        "Colour of the shape",
    ]


@pytest.mark.parametrize("seed", range(200))
def test_cut_and_broken_completions_never_crash(seed):
    draw = random.Random(seed)
    text = draw.choice(list(UGLY.values()))
    text = text[draw.randrange(len(text)) :][: draw.randrange(len(text))]
    text = "".join(draw.choice("{}[]\"',:?\\\n|* ") if draw.random() < 0.05 else each for each in text)
    for raw in parse_questions(text, list(GROUPS)):
        fault(raw.question, Rules(tuple(CLASSES)))
    parse_choice(text, [WINGS, ROUND])


@pytest.mark.parametrize(
    "completion",
    [
        '{"selected": [2, 3]}',
        "```json\n[2, 3]\n```",
        '{"selected": ["2", "3"]}',
        '{"selected": [{"number": 2, "question": "x"}, {"number": 3}]}',
        '{"selected": ["Is it big?", "Is it old?"]}',
        '["big", "old"]',
        "I select 2 questions: 2, 3",
        "The 2 most distinct are: 2 and 3.",
        "2. Is it big?\n3. Is it old?",
        "1. Is it big?\n2. Is it old?",  # numbered anew
        "1. Question 2\n2. Question 3",
        "- #2\n- #3",
        "2\n3",
        '{"selected": [2, 2, 0, 99, -1, 3]}',
        '{"selected": [2, 3, ',
    ],
)
def test_choices_are_found_in_what_llms_write(completion):
    questions = ["Is it red?", "Is it big?", "Is it old?", "Is it new?"]
    assert parse_choice(completion, questions, ["red", "big", "old", "new"]) == [1, 2]


@pytest.mark.parametrize(
    "completion, numbers",
    [
        ('{"selected": [3, 8], "rejected": [1, 2]}', [3, 8]),
        ('{"rejected": [1, 2], "selected": [3, 8]}', [3, 8]),
        ('{"answer": {"selected": [3, 8]}, "count": 2}', [3, 8]),
        ('{"reasoning": "1 and 2 are alike", "selected": [3, 8]}', [3, 8]),
        ('{"reasoning": "1 and 2 are alike", "questions": [3, 8]}', [3, 8]),
        ('{"1": true, "2": false, "3": true}', [1, 3]),
        ('[{"number": 1, "selected": true}, {"number": 2, "selected": false}]', [1]),
        ('{"selected": [], "rejected": [1, 2]}', []),
        (json.dumps('{"selected": [3, 8]}'), [3, 8]),
        (json.dumps({"name": "answer", "arguments": '{"selected": [3, 8]}'}), [3, 8]),
        (json.dumps({"name": "answer", "arguments": {"numbers": [3, 8]}}), [3, 8]),
        ("My picks [2 questions]: 3, 8", [3, 8]),
        ("[Q3, #8]", [3, 8]),
        ("I'd pick questions 3, 8, 12 and 20.", [3, 8, 12, 20]),
        ("Questions 1, 4 and 7 differ most.", [1, 4, 7]),
        ("Questions 1-3 and 7", [1, 2, 3, 7]),
        ("Q1, Q2, Q7", [1, 2, 7]),
        ("**Q3**: colour\n**Q8**: size", [3, 8]),
        ("1. 7\n2. 9\n3. 12", [7, 9, 12]),
        ("- 7\n- 9", [7, 9]),
        ("The best 5 questions are 3, 8, 12, 20 and 21", [3, 8, 12, 20, 21]),
        ("The 2 most distinct are 3 and 8", [3, 8]),
        ("- Question 3 (differs from question 1)", [3]),
        ("My choice: 3, 8 (they differ from question 1)", [3, 8]),
        ("Is it big? (question 3)", [3]),
        ("1-5", [1, 2, 3, 4, 5]),
        ('["1-3", "7"]', [1, 2, 3, 7]),
        ("29-999999", [29, 30]),
        ('{"selected": [3, ' + "1" * 5000, [3]),
        ("3, " + "1" * 5000, [3]),
        ("Question " + "1" * 5000, []),
    ],
)
def test_the_numbers_that_are_meant(completion, numbers):
    questions = [f"Is it {letter}?" for letter in "abcdefghijklmnopqrstuvwxyzäöüß"]
    assert [index + 1 for index in parse_choice(completion, questions)] == numbers


@pytest.mark.parametrize(
    "question",
    [
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
        "Is there a red or blue stripe?",
        "Is the animal in or near water?",
        "Is the car a van or a minivan?",
        "Is this a tree, a shrub or a fern?",
        "Can you see the sky?",
        "图中有红色吗？",
        "هل الشكل أحمر؟",
    ],
)
def test_good_questions(question):
    assert fault(question, Rules(tuple(CLASSES))) is None


@pytest.mark.parametrize(
    "question, reason",
    [
        ("", "no question"),
        ("The shape is red.", "no question"),
        ("Is it red", "no question"),
        ("?", "no words"),
        ("What colour is it?", "begins with 'what'"),
        ("How many corners are there?", "begins with 'how'"),
        ("Ist die Form rot?", "begins with 'ist'"),
        ("Sure, is it red?", "begins with 'sure'"),
        ("Is it red? Is it blue?", "more than one"),
        ("Is it light or dark?", "one of two"),
        ("Is the surface smooth or rough?", "one of two"),
        ("Is it a day scene, or is it a night scene?", "one of two"),
        ("Is the beak long or short?", "one of two"),
        ("Is it a bird or a plane?", "one of two"),
        ("Would you like more questions?", "about the reader"),
        ("Does it look like us?", "about the reader"),
        ("Is it?", "about nothing"),
        ("Does it have?", "about nothing"),
        ("Is there an object in the image?", "about nothing"),
        ("Does it have X edges?", "a pattern"),
        ("Does it have [color] edges?", "a pattern"),
        ("Is the shape ...?", "a pattern"),
        ("Is there a black circle?", "names the class 'black circle'"),
        ("Are there BLACK-Circles in it?", "names the class 'black circle'"),
        ("Is " + "very " * 30 + "red?", "more than 25 words"),
        ("Is it " + "r" * 200 + "?", "more than 160 characters"),
    ],
)
def test_what_is_wrong_is_told(question, reason):
    assert reason in fault(question, Rules(tuple(CLASSES)))


def test_rules_can_be_loosened():
    assert fault("Is there a black circle?", Rules(tuple(CLASSES), allow_class_names=True)) is None
    assert fault("Ist die Form rot?", Rules(any_language=True)) is None


@pytest.mark.parametrize(
    "class_name, question",
    [
        ("001.Black_footed_Albatross", "Is it a black-footed albatross?"),
        ("tench, Tinca tinca", "Is this a Tinca tinca?"),
        ("n02123394_Persian_cat", "Are Persian cats shown?"),
        ("Curaçao", "Is it curacao?"),
        ("daisy", "Are there daisies?"),
        ("church", "Are there churches?"),
        ("wolf", "Are there wolves?"),
        ("Knife", "Are there steak knives?"),
        ("box", "Are there boxes?"),
        ("potato", "Are there potatoes?"),
        ("fireman", "Are there firemen?"),
        ("bus", "Are there buses?"),
        ("lens", "Are there lenses?"),
        ("GoldenRetriever", "Is it a golden retriever?"),
        ("fire truck", "Is it a firetruck?"),
        ("iPhone", "Are there iPhones?"),
        ("lady's slipper", "Is it a lady’s slipper?"),
        ("金毛犬", "图中有金毛犬吗？"),
        ("ネコ", "これは黒いネコですか？"),
        ("고양이", "고양이가 있습니까?"),
    ],
)
def test_class_names_are_found_as_people_say_them(class_name, question):
    assert fault(question, Rules((class_name,))) == f"names the class {class_name!r}"
    assert fault("Is it a house?", Rules((class_name,))) is None


@pytest.mark.parametrize("class_name", ["cat", "ring", "bus", "spring bus", "doe", "GoldenRetriever"])
def test_class_names_are_whole_words(class_name):
    assert fault("Does it show catching a golden spring in business?", Rules((class_name,))) is None


def test_class_names_that_nearly_every_question_has_are_told_once(caplog):
    generate(
        ["A", "I", "the", "X", "cat"], Scripted("Is there a red cat?\nIs it an X?\nIs there the sky?"), "", Plan(1, 1)
    )
    (told,) = [record.getMessage() for record in caplog.records]
    assert "('A', 'I', 'the'): pass longer ones" in told
    assert fault("Is there the red sky?", Rules(("A", "the"))) is None
    assert fault("Is it an X?", Rules(("X",))) == "names the class 'X'"


@pytest.mark.parametrize(
    "one, other",
    [
        ("Is there a red shape?", "is there a  RED shape ?"),
        ("Is there a red shape?", "Does the image show a red shape?"),
        ("Is there a red shape?", "Is there not a red shape?"),
        ("Does it have stripes?", "Is it striped?"),
        ("Is the colour bright?", "Is the color bright?"),
        ("Is the café old?", "Is the cafe old?"),
        ("Is the bird's beak red?", "Does the bird have a red beak?"),
        ("Is the head darker than the body?", "In the image, is the bird's head darker than the body?"),
    ],
)
def test_the_same_said_again(one, other):
    assert fault(other, Rules(), [one]).startswith(("repeats", "says the same as"))


@pytest.mark.parametrize(
    "one, other",
    [
        ("Is there a red shape?", "Is there a blue shape?"),
        ("Does it have two engines?", "Does it have three engines?"),
        ("Is there a circle?", "Is there a circle in the centre?"),
        ("Is the bear big?", "Is the beard big?"),
        ("Is the head darker than the body?", "Is the body darker than the head?"),
        ("Is the head darker than the body?", "Is the body much darker than the head?"),
        ("Is the circle above the square?", "Is the square above the circle?"),
        ("Is the circle left of the square?", "Is the square left of the circle?"),
    ],
)
def test_not_the_same(one, other):
    assert fault(other, Rules(), [one]) is None


@pytest.mark.parametrize("path", BANKS, ids=lambda path: path.parent.name)
def test_the_banks_of_the_recipes_are_good_and_without_duplicates(path):
    bank = AspectBank.load(path)
    for position, aspect in enumerate(bank):
        assert fault(aspect.question, Rules(), bank.questions[:position]) is None
    assert max(similarity(*pair) for pair in itertools.combinations(bank.questions, 2)) < 0.8


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


def listed(*words):
    return "\n".join(f"{number}. Is it {word}?" for number, word in enumerate(words, 1))


SIX = [listed("red", "blue"), listed("big", "old"), listed("wet", "hot")]


def test_rounds_until_there_are_enough_and_then_a_choice():
    llm = Scripted(*SIX, "[6, 1]")
    made = generate(CLASSES, llm, "coloured shapes", Plan(6, 2, per_request=2))
    assert made.candidates.questions == [f"Is it {word}?" for word in ("red", "blue", "big", "old", "wet", "hot")]
    assert [aspect.group for aspect in made.candidates] == [group for group in GROUPS for _ in range(2)]
    assert made.candidates.ids == ["red", "blue", "big", "old", "wet", "hot"]
    assert (made.selected.questions, made.chosen) == (["Is it hot?", "Is it red?"], 2)
    for word in ("black circle", "coloured shapes", "2 questions", "visual"):
        assert word in llm.asked[0]
    assert "Is it blue?" not in llm.asked[0] and "Is it blue?" in llm.asked[1]
    assert len(set(llm.seeds[:3])) == 3


def test_what_is_no_good_falls_and_another_round_is_asked(tmp_path):
    bad = "1. Is it a black circle?\n2. What is it?\n3. Is it red?\n4. Is it red?\n5. It is red."
    made = generate(CLASSES, Scripted(bad, "", listed("big")), "", Plan(2, 2), folder=tmp_path)
    assert made.candidates.questions == ["Is it red?", "Is it big?"]
    rows = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [row["reason"].split(":")[0].split(" '")[0] for row in rows] == [
        "names the class",
        "not for yes or no",
        "repeats",
        "no question",
        "an empty answer",
    ]
    assert [row["round"] for row in rows] == [0, 0, 0, 0, 1]


def test_a_round_without_a_good_one_is_followed_by_a_simpler_request():
    llm = Scripted("black circle, black triangle", listed("red", "big"))
    generate(CLASSES, llm, "", Plan(2, 2))
    assert "JSON" in llm.asked[0] and "JSON" not in llm.asked[1]


def test_the_example_of_the_simpler_request_is_not_taken_for_the_llm_s():
    copied = "\n".join([*examples("categorical"), "Is it red?"])
    assert generate(CLASSES, Scripted("", copied), "", Plan(1, 1)).candidates.questions == ["Is it red?"]


def test_all_good_ones_of_an_answer_are_kept():
    made = generate(CLASSES, Scripted(listed("red", "big", "old", "wet"), "[4]"), "", Plan(2, 1))
    assert (len(made.candidates), made.selected.questions) == (4, ["Is it wet?"])


def test_one_is_told_as_one(tmp_path):
    llm = Scripted("Is it red?\nIs it light or dark?")
    with pytest.raises(TooFewQuestionsError) as caught:
        generate(CLASSES, llm, "", Plan(2, 2, max_rounds=1), folder=tmp_path)
    told = str(caught.value)
    for part in (
        "after 1 request to",
        "of 2 proposals 1 fell: 1 asks for one of two. ",
        "candidates.jsonl keeps 1 good question;",
    ):
        assert part in told
    with pytest.raises(ValueError, match="from 1 candidate:"):
        Plan(1, 2)
    assert "Write 1 other yes/no question about" in ask_simply(CLASSES, "", 1, "visual")[-1]["content"]


def test_too_few_are_told_with_reasons_and_kept(tmp_path):
    llm = Scripted(listed("red", "big") + "\n3. Is it a red circle?\n4. What?")
    with pytest.raises(TooFewQuestionsError) as caught:
        generate(CLASSES, llm, "", Plan(9, 5, max_rounds=2), folder=tmp_path)
    told = str(caught.value)
    for part in ("2 of 9 good questions", "2 requests to scripted", "8 proposals 6 fell", "2 names the class"):
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


@pytest.mark.parametrize(
    "change, told",
    [
        ({"names": ["a", "b"]}, "another class name"),
        ({"domain": "birds"}, "another domain"),
        ({"llm": "x"}, "another llm"),
    ],
)
def test_another_task_is_refused_in_the_same_folder(tmp_path, change, told):
    generate(CLASSES, Scripted(listed("red")), "shapes", Plan(1, 1), folder=tmp_path)
    with pytest.raises(ValueError, match=f"{told} .*pass another --output_dir"):
        open_store(
            change.get("names", CLASSES),
            change.get("llm", "scripted"),
            change.get("domain", "shapes"),
            folder=tmp_path,
        )
    assert open_store(CLASSES, "x", "shapes", folder=tmp_path, change_llm=True).task.llm == "x"


def test_other_rules_judge_anew_what_is_there(tmp_path):
    llm = Scripted(listed("red", "a black circle", "big"))
    generate(CLASSES, llm, "", Plan(2, 2), folder=tmp_path)
    loose = open_store(CLASSES, "scripted", "", Rules(allow_class_names=True), tmp_path)
    assert loose.questions == ["Is it red?", "Is it big?", "Is it a black circle?"]
    assert open_store(CLASSES, "scripted", "", Rules(), tmp_path).questions == ["Is it red?", "Is it big?"]


@pytest.mark.parametrize(
    "answers, chosen, expected",
    [
        (["[3]", "[3, 1]"], 2, ["old", "red"]),
        (["I cannot decide.", "[2, 3]"], 2, ["big", "old"]),
        (["none"], 0, ["red", "big"]),
        (["[3]", "", ""], 1, ["old", "red"]),
        (["[1, 2, 3]"], 2, ["red", "big"]),
    ],
)
def test_a_choice_is_asked_for_again_and_then_filled(answers, chosen, expected):
    made = generate(CLASSES, Scripted(listed("red", "big", "old"), *answers), "", Plan(3, 2))
    assert (made.selected.ids, made.chosen) == (expected, chosen)


@pytest.mark.parametrize(
    "names, told",
    [
        ([], "0 class names"),
        (["cat"], "1 class name given"),
        (["cat", " "], "2 of 2 is empty"),
        (["a", "a "], "twice"),
    ],
)
def test_class_names_are_looked_at(names, told):
    with pytest.raises(ValueError, match=told):
        check_class_names(names)


@pytest.mark.parametrize(
    "options, told",
    [
        ({"candidates": 3, "keep": 5}, "5 questions cannot be selected from 3"),
        ({"keep": 0}, "keep is 0"),
        ({"per_request": 0}, "per_request is 0"),
        ({"groups": []}, "groups are"),
        ({"groups": ["a", "a"]}, "groups are"),
        ({"max_rounds": -1}, "max_rounds is -1"),
    ],
)
def test_plans_are_looked_at(options, told):
    with pytest.raises(ValueError, match=told):
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


def test_the_prompt_s_own_examples_do_not_become_the_llm_s_when_the_command_goes_on(tmp_path):
    rules, task = Rules(("cat", "dog")), Task(("cat", "dog"), "", "an LLM")
    store = Store(tmp_path, task, rules)
    for question in examples("visual"):
        store.reject(Aspect("", question, "visual"), f"says the same as {question!r}", 0)
    assert Store(tmp_path, task, rules).questions == []


# What an LLM writes that loops, until it is cut.
LOOPS = [
    "[",
    '{"a":',
    "a'b ",
    '{"question": "Is it big?", ',
    "<think>",
    "</think>",
    "<think></think>",
    "1",
    '"',
    '\\"',
    "\\",
    "“",
    "'",
    "'[",
    "\"['",
    '["',
    "[}",
    "(",
    "- ",
    "1. ",
    "a **",
    "*",
    "a",
    "? ",
    "# ",
    "q1, ",
    "1-30\n",
    "no. ",
    "\n",
    " ",
    "| ",
    "```\n",
    "``` ",
    "/",
    "a: ",
    "(yes ",
]


@pytest.mark.parametrize("head", ["", "[1, {'q': '", "1. Is it big? "])
@pytest.mark.parametrize("loop", LOOPS)
def test_an_llm_that_loops_neither_ends_nor_halts_the_run(head, loop):
    completion = head + (loop * 40_000)[:40_000] + "end"
    started = time.process_time()
    assert isinstance(parse_questions(completion, tuple(GROUPS)), list)
    parse_choice(completion, [f"Is it {number}?" for number in range(30)])
    assert time.process_time() - started < 3  # it is 0.1 to 0.4, and a minute where the time is quadratic


def test_what_is_readable_of_an_endless_answer_is_kept():
    many = [{"question": f"Is it {number}?"} for number in range(2000)]
    assert len(parse_questions(json.dumps(many).replace("}", ""))) == 2000
    assert len(parse_questions(json.dumps(many * 9))) > 5000
    assert parse_questions("<think>" + "Is it? " * 90_000 + f"</think>{WINGS}")[0].question == WINGS


@pytest.mark.parametrize("digits", ["1" * 5000, "-" + "1" * 5000, "1" * 5000 + ".5"])
def test_long_numbers_are_no_numbers(digits):
    completion = f'{{"questions": [{{"id": {digits}, "question": "{WINGS}"}}]}}'
    assert [raw.question for raw in parse_questions(completion)] == [WINGS]


def test_half_a_character_can_be_written():
    (raw,) = parse_questions('["Is it \\ud83d red?", "Is it')
    assert raw.question.encode() == b"Is it red?"
