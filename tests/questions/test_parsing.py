"""From what LLMs really write to questions and choices; nothing that they write breaks or halts a run."""

from __future__ import annotations

import json
import random
import time

from madkd_hf.questions import Rules, fault
from madkd_hf.questions.parsing import parse_choice, parse_questions


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
}


def test_questions_are_found_in_what_llms_write():
    for name, completion in UGLY.items():
        found = [proposal.question for proposal in parse_questions(completion)]
        assert [question for question in found if question.endswith("?")] == [WINGS, ROUND], name


def test_ids_and_groups_are_read_where_they_are():
    def first(name):
        proposal = parse_questions(UGLY[name])[0]
        return proposal.id, proposal.group

    assert first("the JSON that was asked for") == ("w", "visual")
    assert first("a list of texts") == ("", "")


def test_what_stands_beside_a_question_is_no_question():
    for beside in ('"name": "red colour"', '"reason": "tells apples from pears"'):
        completion = f'{{"aspects": [{{"text": "{WINGS}", {beside}}}]}}'
        assert [proposal.question for proposal in parse_questions(completion)] == [WINGS], completion
    (proposal,) = parse_questions(f'{{"text": "{WINGS}", "name": "has wings"}}')
    assert proposal.id == "has wings"


def test_nothing_is_found_where_nothing_is():
    for completion in (
        "",
        "   \n",
        "I cannot help with that.",
        "{}",
        "[]",
        "```\n```",
        "<think>Is it",
        "7",
        '{"q": 7}',
    ):
        assert parse_questions(completion) == [], completion


def test_choices_are_found_in_what_llms_write():
    questions = ["Is it red?", "Is it big?", "Is it old?", "Is it new?"]
    for completion in [
        '{"selected": [2, 3]}',
        "```json\n[2, 3]\n```",
        '{"selected": ["2", "3"]}',
        '{"selected": ["Is it big?", "Is it old?"]}',
        '{"reasoning": "1 and 4 are alike", "selected": [2, 3]}',
        '{"rejected": [1], "selected": [2, 3]}',
        "I select 2 questions: 2, 3",
        "The 2 most distinct are: 2 and 3.",
        "2. Is it big?\n3. Is it old?",
        "1. Is it big?\n2. Is it old?",  # numbered anew
        "- #2\n- #3",
        "Q2, Q3",
        "2\n3",
        '{"selected": [2, 2, 0, 99, -1, 3, true]}',
        '{"selected": [2, 3, ',
        '{"questions": [2, 3], "reasons": "1 and 4 are alike"}',
        '{"selected": [{"number": 2, "question": "Is it big?"}, {"number": 3, "question": "Is it old?"}]}',
        '[{"question": "2. Is it big?"}, {"question": "3. Is it old?"}]',
        "2, 3, " + "1" * 5000,
    ]:
        assert parse_choice(completion, questions) == [1, 2], completion
    for completion in ("", "none", '{"selected": []}', "Question " + "1" * 5000):
        assert parse_choice(completion, questions) == []


def test_cut_and_broken_completions_never_crash():
    for seed in range(200):
        draw = random.Random(seed)
        text = draw.choice(list(UGLY.values()))
        text = text[draw.randrange(len(text)) :][: draw.randrange(len(text))]
        text = "".join(draw.choice("{}[]\"',:?\\\n|* ") if draw.random() < 0.05 else letter for letter in text)
        for proposal in parse_questions(text):
            fault(proposal.question, Rules(("black circle", "red circle")))
        parse_choice(text, [WINGS, ROUND])


# What an LLM writes that loops, until it is cut; and what a hostile server would write.
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
HOSTILE = "".join(f"'[{number}" for number in range(30_000))[:100_000]


def test_an_llm_that_loops_neither_ends_nor_halts_the_run():
    loops = [head + (loop * 30_000)[:30_000] + "end" for loop in LOOPS for head in ("", "1. Is it? ")]
    for completion in [*loops, HOSTILE, "[" * 5000, '{"a":' * 900 + "1" + "}" * 900]:
        started = time.process_time()
        assert isinstance(parse_questions(completion), list)
        parse_choice(completion, [f"Is it {number}?" for number in range(30)])
        assert time.process_time() - started < 20, completion[:30]  # most take 0.02


def test_what_is_readable_of_an_endless_answer_is_kept():
    many = [{"question": f"Is it {number}?"} for number in range(2000)]
    assert len(parse_questions(json.dumps(many))) == 2000
    assert len(parse_questions(json.dumps(many).replace("}", ""))) > 300
    assert parse_questions("<think>" + "Is it? " * 90_000 + f"</think>{WINGS}")[0].question == WINGS


def test_long_numbers_and_half_characters():
    for digits in ("1" * 5000, "-" + "1" * 5000, "1" * 5000 + ".5"):
        completion = f'{{"questions": [{{"id": {digits}, "question": "{WINGS}"}}]}}'
        assert [proposal.question for proposal in parse_questions(completion)] == [WINGS]
    proposal = parse_questions('["Is it \\ud83d red?", "Is it')[0]
    assert proposal.question.encode() == b"Is it red?"
