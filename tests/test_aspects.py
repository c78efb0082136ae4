"""The bank: what it holds, how it travels, what it refuses."""

import json
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from builders import tiny

from madkd_hf import Aspect, AspectBank


RED = Aspect("red", "Is it red?", "visual")
BIG = Aspect("big", "Is it big?", "visual")


def test_questions_and_ids_stand_in_order():
    bank = AspectBank([RED, BIG])
    assert (len(bank), bank.ids, bank.questions) == (2, ["red", "big"], ["Is it red?", "Is it big?"])
    assert list(bank) == [RED, BIG] and bank[1] == BIG


@pytest.mark.parametrize("name", ["aspects.json", "other.json", "", "new/folder"])
def test_save_and_load_give_back_the_bank_with_its_provenance(tmp_path, name):
    bank = AspectBank([Aspect("rouge", "Est-ce là « rouge » ?", "visual"), BIG], provenance={"model": "m", "yes": [1]})
    path = bank.save(tmp_path / name)
    for source in {path, str(path), tmp_path / name}:
        loaded = AspectBank.load(source)
        assert loaded.aspects == bank.aspects
        assert loaded.provenance == {"model": "m", "yes": [1]}
        assert loaded.fingerprint == bank.fingerprint
    assert [file.name for file in path.parent.iterdir() if file.is_file()] == [path.name]


def test_a_bank_without_provenance_has_none_after_loading(tmp_path):
    assert AspectBank.load(AspectBank([RED]).save(tmp_path)).provenance is None


@pytest.mark.parametrize(
    "other",
    [
        AspectBank([BIG, RED]),
        AspectBank([RED]),
        AspectBank([Aspect("rouge", RED.question, RED.group), BIG]),
        AspectBank([Aspect(RED.id, "Is it Red?", RED.group), BIG]),
    ],
    ids=["order", "number", "id", "question"],
)
def test_fingerprint_changes_with_what_answers_mean(other):
    assert other.fingerprint != AspectBank([RED, BIG]).fingerprint


@pytest.mark.parametrize(
    "other",
    [
        AspectBank([Aspect(RED.id, RED.question, "colour"), BIG]),
        AspectBank([RED, BIG], provenance={"model": "m"}),
    ],
    ids=["group", "provenance"],
)
def test_fingerprint_ignores_what_does_not_change_the_answers(other):
    assert other.fingerprint == AspectBank([RED, BIG]).fingerprint


def test_fingerprint_is_the_same_in_every_version_of_the_package():
    """Datasets on the Hub carry it: a change would make all of them foreign."""
    assert AspectBank([RED, BIG]).fingerprint == "24df8ac25b7c1ef4"


@pytest.mark.parametrize(
    ("aspects", "message"),
    [
        ([], "has no questions: expected at least one"),
        ([RED, Aspect("red", "Is it crimson?")], "id 'red' appears twice.*remove one"),
        ([RED, Aspect("crimson", " is IT  red? ")], "question 'is it red\\?' appears twice.*'red' and 'crimson'"),
        ([Aspect("red", "It is red.")], "'red' is no question but 'It is red.'.*yes or no.*question mark"),
        ([Aspect("red", "")], "'red' is no question but ''"),
        ([Aspect("red", None)], "'red' is no question but None"),
        ([RED, Aspect(" ", "Is it big?")], "Aspect 1 has the id ' ': expected a name"),
        ([Aspect(3, "Is it big?")], "Aspect 0 has the id 3: expected a name"),
    ],
    ids=["empty", "duplicate id", "duplicate question", "statement", "no text", "None", "blank id", "number as id"],
)
def test_a_bad_bank_is_refused(aspects, message):
    with pytest.raises(ValueError, match=message):
        AspectBank(aspects)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        "3",
        "{}",
        '{"format_version": 1}',
        '{"format_version": 1, "aspects": 3}',
        '{"format_version": 1, "aspects": ["Is it red?"]}',
        '{"format_version": 1, "aspects": [{"id": "red"}]}',
        '{"format_version": 1, "aspects": [{"id": "red", "question": "Is it red?", "colour": "red"}]}',
    ],
)
def test_a_file_that_is_no_bank_is_refused_with_an_example_of_one(tmp_path, text):
    path = tmp_path / "aspects.json"
    path.write_text(text)
    with pytest.raises(ValueError, match='aspects.json is no aspect bank.*expected JSON like {"format_version"'):
        AspectBank.load(path)


def test_a_binary_file_is_refused(tmp_path):
    (tmp_path / "aspects.json").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ValueError, match="is no aspect bank"):
        AspectBank.load(tmp_path)


def test_a_newer_format_is_refused(tmp_path):
    (tmp_path / "aspects.json").write_text(json.dumps({"format_version": 2, "aspects": []}))
    with pytest.raises(ValueError, match="format 2, this version reads 1: upgrade"):
        AspectBank.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "holds no aspects.json"), ("none.json", "no bank at .*none.json: expected"), ("a/b/c", "expected a JSON")],
)
def test_a_missing_bank_says_where_it_was_looked_for(tmp_path, name, message):
    with pytest.raises(FileNotFoundError, match=message):
        AspectBank.load(tmp_path / name)


class _Hub(BaseHTTPRequestHandler):
    """The two requests that a download makes, over real HTTP."""

    def __init__(self, *args, content: bytes, asked: list[str]):
        self.content, self.asked = content, asked
        super().__init__(*args)

    def do_HEAD(self):
        self.asked.append(f"{self.path} {self.headers.get('authorization')}")
        self.send_response(200)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", '"etag"')
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


def test_load_takes_the_id_of_a_hub_dataset_with_revision_and_token(tmp_path):
    bank, asked = tiny.bank(), []
    content = bank.save(tmp_path).read_bytes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, content=content, asked=asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    alone = Path(__file__).parents[1] / "madkd_hf"  # the bank and its text need nothing else of the package
    code = (
        "import sys, types\n"
        f"package = types.ModuleType('madkd_hf'); package.__path__ = [{str(alone)!r}]\n"
        "sys.modules['madkd_hf'] = package\n"
        "from madkd_hf.aspects import AspectBank\n"
        "print(AspectBank.load('someone/questions', revision='v1', token='hf_secret').fingerprint)\n"
        "assert {name for name in sys.modules if 'madkd_hf.' in name} == {'madkd_hf.aspects', 'madkd_hf.text'}"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
    }
    try:
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    finally:
        server.shutdown()
    assert done.stdout.split() == [bank.fingerprint], done.stderr
    assert "/datasets/someone/questions/resolve/v1/aspects.json Bearer hf_secret" in asked


GOOD = {"id": "red", "question": "Is it red?", "group": "visual"}
HIDDEN = [
    "\0",
    "\x07",
    "\x1b[2J",
    "\x9b31m",
    "\x7f",
    "\u202eder\u202c",
    "\u2066",
    "\u200e",
    "\u200b",
    "\ufeff",
    "\u2028",
]
HIDDEN += ["\ud800", "\U000e0041", "\n"]


def write_bank(folder: Path, *changes: dict) -> Path:
    aspects = [{**GOOD, **change} for change in changes or [{}]]
    (folder / "aspects.json").write_text(json.dumps({"format_version": 1, "aspects": aspects}))
    return folder / "aspects.json"


@pytest.mark.parametrize(
    ("key", "hidden"),
    [(key, hidden) for key in ("id", "question", "group") for hidden in HIDDEN if (key, hidden) != ("question", "\n")],
    ids=ascii,
)
def test_a_bank_with_characters_that_cannot_be_seen_is_refused_when_it_is_read(tmp_path, key, hidden):
    path = write_bank(tmp_path, {key: f"a{hidden} red?"})
    with pytest.raises(
        ValueError, match=f"aspects.json: The {key} of aspect .* holds the character .*remove it"
    ) as told:
        AspectBank.load(path)
    assert str(told.value).isprintable()
    with pytest.raises(ValueError, match="holds the character"):
        AspectBank([Aspect(**{**GOOD, key: f"a{hidden} red?"})])


def test_a_bank_may_be_written_in_any_language_and_hold_marks_of_other_formats(tmp_path):
    names = ["$\\frac{$", "![x](http://127.0.0.1:9/t.png)", "می\u200cروم", "grün", "🐦\u200d⬛", "<b>|`"]
    path = write_bank(tmp_path, *({"id": name, "question": f"Is it {name}?"} for name in names))
    assert AspectBank.load(path).ids == names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group": 7}, "has the group 7: expected a text"),
        ({"group": ["a"]}, r"has the group \['a'\]: expected a text"),
        ({"group": None}, "has the group None: expected a text"),
        ({"group": {"a": 1}}, "has the group"),
        ({"id": ["red"]}, r"Aspect 0 has the id \['red'\]"),
        ({"id": True}, "Aspect 0 has the id True"),
        ({"question": ["Is it red?"]}, "is no question but"),
        ({"question": {"en": "Is it red?"}}, "is no question but"),
        ({"question": "Is it " + "very " * 40_000 + "red?"}, "has 200,010 characters: expected at most 2,000"),
        ({"id": "r" * 201}, "The id of aspect .* has 201 characters: expected at most 200"),
        ({"group": "g" * 201}, "The group of aspect 'red' has 201 characters"),
        ({"colour": "red"}, "is no aspect bank.*colour"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bank_with_other_things_than_texts_of_a_sentence_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message) as told:
        AspectBank.load(write_bank(tmp_path, change))
    assert len(str(told.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, r"is no aspect bank \(nested too deeply"),
        ('{"format_version": 1, "aspects": [{"id": "a", "id": "b", "question": "Is it?"}]}', "key 'id' appears twice"),
        ('{"format_version": 1, "aspects": [], "aspects": []}', "key 'aspects' appears twice"),
        ('{"format_version": NaN, "aspects": []}', "NaN is no JSON"),
        ('{"format_version": true, "aspects": []}', "bank format True, this version reads 1"),
        ('{"format_version": 1, "aspects": [], "provenance": Infinity}', "Infinity is no JSON"),
        ('{"format_version": 1, "aspects": [{"id": "a", "question": "Is it?"}], "provenance": [1]}', "provenance is"),
        (
            '{"format_version": 1, "aspects": [{"id": "a", "question": "Is it?"}], "provenance": "x"}',
            "provenance is 'x'",
        ),
        ('{"format_version": 1, "aspects": ' + "1" * 5_000 + "}", "is no aspect bank"),
    ],
    ids=lambda value: value[:40],
)
def test_a_file_that_would_confuse_its_reader_is_refused_in_a_sentence(tmp_path, text, message):
    (tmp_path / "aspects.json").write_text(text)
    with pytest.raises(ValueError, match=message) as told:
        AspectBank.load(tmp_path)
    assert len(str(told.value)) < 500 + len(str(tmp_path))


def test_a_bank_of_more_questions_or_bytes_than_anybody_asks_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has 10,001 questions: expected at most 10,000"):
        AspectBank(f"Is it {number}?" for number in range(10_001))
    with (tmp_path / "aspects.json").open("wb") as file:
        file.truncate(10**9)  # of nothing: it takes no room
    with pytest.raises(ValueError, match="it has 1,000,000,000 bytes, at most 50,000,000 are read"):
        AspectBank.load(tmp_path)


def test_plain_questions_get_ids_of_their_words():
    bank = AspectBank(
        ["Is it red?", "Does the bird have a long beak?", "Is it a RED one?", Aspect("red", "Is it reddish?")]
    )
    assert bank.ids == ["red_2", "bird_long_beak", "red_one", "red"]
    assert AspectBank(["Is it?", "¿Es rojo?", "它是红色的吗？", "Is it - there?"]).ids == [
        "is_it",
        "es_rojo",
        "它是红色的吗",
        "is_it_there",
    ]
    assert len(AspectBank(["Is it " + "very " * 30 + "red?"]).ids[0]) <= 40


@pytest.mark.parametrize(
    "bank", ["Is it red?", {"red": "Is it red?"}, [("red", "Is it red?")], [None], [{"id": "red"}]], ids=repr
)
def test_what_is_no_list_of_questions_is_refused(bank):
    with pytest.raises(ValueError, match=r"expected (a list of questions|a question), or .*Aspect\(id, question\)"):
        AspectBank(bank)


def test_provenance_that_json_cannot_hold_is_saved_as_what_it_can(tmp_path):
    path = AspectBank([RED], {"errors": float("nan"), "path": tmp_path, "tokens": ("Yes", "No")}).save(tmp_path)
    assert AspectBank.load(path).provenance == {"errors": None, "path": str(tmp_path), "tokens": ["Yes", "No"]}
