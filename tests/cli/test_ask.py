"""The command that asks an LLM: a real server or model, real files, and what the user sees."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders.openai_server import Fault, OpenAIServer, completion
from datasets import ClassLabel, Dataset, Features, Value

from madkd_hf import Aspect, AspectBank
from madkd_hf.questions import open_store


ROOT = Path(__file__).parents[2]
KEY = "sk-thekeythatnobodymayfind"
CLASSES = ["black cat", "white cat", "black dog", "white dog"]
GOOD = json.dumps(
    {"questions": [{"id": w, "question": f"Is it {w}?", "group": "visual"} for w in ("big", "old", "wet", "striped")]}
)
NAMED = ["--class_names", *CLASSES]
HERE = ["--llm", "m", "--base_url", "http://127.0.0.1:9"]


def command(tmp_path, *options):
    script, folder = ROOT / "recipes/generate_questions.py", tmp_path / "out"
    return [sys.executable, str(script), "--output_dir", str(folder), *map(str, options)]


@pytest.fixture
def ask(tmp_path, capsys):
    """Runs the command in this process: what it prints, and its error or None."""
    from madkd_hf.cli.ask import main
    from madkd_hf.cli.main import run

    def run_it(*options):
        before, sys.argv = sys.argv, ["generate_questions.py", *command(tmp_path, *options)[2:]]
        try:
            run(main)
            error = None
        except SystemExit as stopped:
            error = str(stopped.code)
        finally:
            sys.argv = before
        return "".join(capsys.readouterr()), error

    return run_it


def four(url):
    return [*NAMED, "--llm", "m", "--candidates", 4, "--keep", 4, "--base_url", url]


def test_the_whole_command_with_a_key_that_stays_secret(tmp_path, ask, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with OpenAIServer([Fault(503, f"not yet, {KEY}"), GOOD, "[4, 1]"], key=KEY) as server:
        options = [*four(server.url), "--domain", "photographs of pets", "--keep", 2, "--api_key_env", "MY_KEY"]
        printed, error = ask(*options)
    out = tmp_path / "out"
    assert error is None
    assert AspectBank.load(out).questions == ["Is it striped?", "Is it big?"]
    assert len(AspectBank.load(out / "aspects_all.json")) == 4
    names = ["aspects.json", "aspects_all.json", "candidates.jsonl", "generation.json"]
    assert sorted(path.name for path in out.glob("[!.]*")) == names
    assert "photographs of pets" in server.bodies[1]["messages"][1]["content"]
    assert "madkd label --bank" in printed
    assert KEY not in printed + "".join(path.read_text() for path in out.iterdir())


@pytest.mark.slow
def test_a_killed_command_goes_on_where_it_was(tmp_path, ask):
    more = GOOD.replace("big", "tall").replace("old", "new").replace("wet", "dry").replace("striped", "spotted")
    options = [*NAMED, "--llm", "m", "--candidates", 8, "--keep", 8]
    with OpenAIServer([GOOD, Fault(seconds=60)]) as server:
        running = subprocess.Popen(
            command(tmp_path, *options, "--base_url", server.url), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        for _ in range(600):
            if len(server.bodies) == 2 or running.poll() is not None:
                break
            time.sleep(0.1)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=30)
    assert len((tmp_path / "out/candidates.jsonl").read_text().splitlines()) == 4
    with OpenAIServer([more]) as server:
        printed, error = ask(*options, "--base_url", server.url)
        assert error is None
        assert len(server.bodies) == 1 and "there already: 4 of 8 good questions" in printed
    assert len(AspectBank.load(tmp_path / "out")) == 8


def test_the_classes_of_a_dataset(tmp_path, ask):
    features = {"image": Value("string"), "kind": ClassLabel(names=CLASSES), "text": Value("string")}
    rows = Dataset.from_dict({"image": ["x"], "kind": [0], "text": ["a"]}, features=Features(features))
    rows.save_to_disk(tmp_path / "data")
    with OpenAIServer([GOOD]) as server:
        options = [*four(server.url)[len(NAMED) :], "--dataset", tmp_path / "data"]
        assert "no column 'label' but image, kind, text: pass --label_column kind" in ask(*options)[1]
        assert "has no class names" in ask(*options, "--label_column", "text")[1]
        assert ask(*options, "--label_column", "kind")[1] is None
        assert ", ".join(CLASSES) in server.bodies[0]["messages"][1]["content"]


def test_the_classes_of_a_file(tmp_path, ask):
    with OpenAIServer([GOOD]) as server:
        options = four(server.url)[len(NAMED) :]
        for number, text in enumerate(("\n".join(CLASSES) + "\n\n", json.dumps(dict(enumerate(CLASSES))))):
            (tmp_path / "names").write_text(text)
            place = ["--class_names_file", tmp_path / "names", "--output_dir", tmp_path / f"out{number}"]
            assert ask(*options, *place)[1] is None
            assert ", ".join(CLASSES) in server.bodies[number]["messages"][1]["content"]
        for content in (b"\xff\xfe", b"[1, 2", b'{"a": 1}'):
            (tmp_path / "names").write_bytes(content)
            assert "names" in ask(*options, "--class_names_file", tmp_path / "names")[1]


@pytest.mark.parametrize(
    "options, expected",
    [
        ([*HERE], "The class names come from nowhere: pass one of --class_names"),
        ([*HERE, *NAMED, "--dataset", "x"], "come from --class_names and --dataset"),
        ([*HERE, "--class_names", "cat"], "1 class name given: expected two or more"),
        ([*HERE, "--class_names", "cat", "a\udce9"], r"'a\\udce9' cannot be written as UTF-8"),
        ([*HERE, *NAMED, "--domain", "a\udce9"], r"'a\\udce9' cannot be written as UTF-8"),
        ([*HERE, "--class_names_file", "nowhere.txt"], "There is no file nowhere.txt"),
        ([*NAMED], "No LLM given"),
        ([*HERE, *NAMED, "--local"], "Both --local and --base_url"),
        ([*HERE, *NAMED, "--candidates", "3", "--keep", "4"], "4 questions cannot be selected from 3 candidates"),
        ([*HERE, *NAMED, "--price_in", "3"], "pass both --price_in and --price_out"),
        ([*HERE, *NAMED, "--api_key_env", "NO_SUCH_KEY"], "no key in the environment variable NO_SUCH_KEY"),
        ([*HERE, *NAMED, "--api_key_env", KEY], r"no key in the environment variable \*\*\*"),
        ([*HERE, *NAMED, "--api_key", KEY], "Unknown option --api_key: did you mean 'api_key_env'"),
        ([*HERE, *NAMED, "--retries", "0"], "cannot be reached"),
        (["--llm", "m.gguf", *NAMED], "There is no file m.gguf: expected a .gguf file, or owner/repo:file.gguf"),
        (["--llm", "owner/model", *NAMED], "HF_HUB_OFFLINE=1 is set"),
    ],
)
def test_what_a_user_did_wrong_is_one_sentence(ask, options, expected):
    error = ask(*options)[1]
    assert error.startswith("error: ") and re.search(expected, error), error
    assert "\n" not in error and KEY not in error


def test_numbers_that_cannot_be_are_one_sentence_before_any_request(ask):
    with OpenAIServer([GOOD]) as server:
        for option, *values in [
            ("--timeout", "inf", "nan", "0", "1e12"),
            ("--retries", "-1"),
            ("--temperature", "nan", "-1"),
            ("--max_tokens", "0"),
            ("--max_words", "0"),
            ("--max_characters", "0"),
        ]:
            for value in values:
                error = ask(*four(server.url), option, value)[1]
                assert f"{option[2:]} is " in error and "expected" in error and "\n" not in error
        error = ask(*four(server.url), "--price_in", "nan", "--price_out", "1")[1]
        assert "--price_in is nan: expected 0 or more" in error and server.bodies == []


def test_too_few_is_reported_and_the_same_command_goes_on(ask):
    options = [*NAMED, "--llm", "m", "--candidates", 6, "--keep", 4, "--max_rounds", 2]
    with OpenAIServer([GOOD]) as server:
        error = ask(*options, "--base_url", server.url)[1]
        assert "4 of 6 good questions after 2 requests to m" in error and "4 repeats" in error
        assert "Try --candidates 4, which are there" in error
        printed, error = ask(*options, "--base_url", server.url, "--candidates", 4)
        assert error is None and len(server.bodies) == 2 and "there already: 4 of 4 good questions" in printed
        assert "holds questions for another llm" in ask(*options, *HERE, "--llm", "n")[1]


def test_a_dry_run_shows_the_cost_needs_no_key_and_asks_nothing(tmp_path, ask):
    prices = ["--dry_run", "--price_in", 1, "--price_out", 2]
    for where in ([*HERE, "--api_key_env", "NO_SUCH_KEY"], ["--llm", "owner/model"]):
        printed, error = ask(*NAMED, *where, *prices)
        assert error is None and not (tmp_path / "out").exists()
        assert "about 7 requests" in printed and "USD, at most" in printed


def test_a_dry_run_changes_nothing_in_a_folder_that_is_there(tmp_path, ask):
    with OpenAIServer([GOOD]) as server:
        ask(*four(server.url))
    path = tmp_path / "out/candidates.jsonl"
    for text in (path.read_text()[:-1], path.read_text() + '{"rou'):
        path.write_text(text)
        printed, error = ask(*four(HERE[-1]), "--dry_run")
        assert error is None and "there already: 4 of 4 good questions" in printed
        assert path.read_text() == text


def test_a_choice_that_is_filled_up_is_reported(ask):
    with OpenAIServer([GOOD, "I cannot."]) as server:
        printed, _ = ask(*four(server.url), "--keep", 2)
    assert "selected only 0 questions" in printed and "the first of the rest" in printed


def test_a_second_run_in_the_same_folder_is_refused_and_reads_what_the_first_wrote(tmp_path, ask):
    late = open_store(CLASSES, "m", folder=tmp_path / "out")
    with OpenAIServer([GOOD]) as server:
        with open_store(CLASSES, "m", folder=tmp_path / "out").hold():
            error = ask(*four(server.url))[1]
        assert re.search("^error: Another run is at work in .*out: .* pass another --output_dir", error)
        assert server.bodies == []
        assert ask(*four(server.url))[1] is None
        with late.hold():
            assert len(late.aspects) == 4


def test_a_folder_with_the_same_ids_twice_works(tmp_path, ask):
    path = tmp_path / "out/candidates.jsonl"
    with OpenAIServer([GOOD]) as server:
        ask(*four(server.url))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [{**row, "question": question} for row, question in zip(rows, ("Is it hot?", rows[1]["question"]))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, error = ask(*four(server.url), "--candidates", 5, "--keep", 5)
    assert error is None and len(server.bodies) == 1
    assert AspectBank.load(tmp_path / "out").ids == ["big", "old", "wet", "striped", "big_2"]


def test_a_bank_by_hand_is_not_overwritten(tmp_path, ask):
    with OpenAIServer([GOOD]) as server:
        for name in ("aspects.json", "aspects_all.json"):
            path = AspectBank([Aspect("mine", "Is it mine?")]).save(tmp_path / "out" / name)
            before = path.read_text()
            for dry in ([], ["--dry_run"]):
                error = ask(*four(server.url), *dry)[1]
                assert f"{name} holds questions that were not written by this command ('Is it mine?')" in error
                assert server.bodies == [] and path.read_text() == before
            path.unlink()
        ask(*four(server.url))
        path = tmp_path / "out/aspects.json"
        path.write_text(path.read_text().replace("Is it wet?", "Is it soaked?"))
        assert "('Is it soaked?')" in ask(*four(server.url))[1]


def test_the_bank_of_a_dataset_is_not_overwritten(tmp_path, ask):
    (tmp_path / "out").mkdir()
    with OpenAIServer([GOOD]) as server:
        for name in ("dataset_info.json", "dataset_dict.json", "state.json"):
            (tmp_path / "out" / name).write_text("{}")
            assert "out holds a dataset: pass another --output_dir" in ask(*four(server.url))[1]
            (tmp_path / "out" / name).unlink()
        assert server.bodies == []


@pytest.mark.parametrize("place", ["/proc/xyz", "file", "file/in_it"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_request(tmp_path, ask, place):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    with OpenAIServer([GOOD]) as server:
        for dry in ([], ["--dry_run"]):
            error = ask(*four(server.url), *dry, "--output_dir", tmp_path / place)[1]
            assert error.startswith("error: ") and "pass" in error and "\n" not in error
        assert server.bodies == [] and sorted(tmp_path.iterdir()) == before


def test_an_llm_that_only_thinks_is_stopped_and_what_is_there_is_kept(ask):
    with OpenAIServer([GOOD, completion(finish_reason="length")]) as server:
        error = ask(*four(server.url), "--candidates", 8)[1]
        assert re.search("twice in a row.*: raise --max_tokens", error) and "keeps 4 good questions" in error
        assert len(server.bodies) == 3


def test_a_refusal_is_noted(tmp_path, ask):
    refusal = completion(refusal="Is that fine? I cannot help with cats.")
    with OpenAIServer([refusal, GOOD]) as server:
        assert ask(*four(server.url))[1] is None
    (row,) = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())
    assert row["reason"] == "a refusal: Is that fine? I cannot help with cats." and row["question"] == ""


def test_class_names_with_commas_stand_on_lines_of_their_own(ask):
    with OpenAIServer([GOOD]) as server:
        assert (
            ask(*four(server.url), "--class_names", "tench, Tinca tinca", "goldfish,\n Carassius auratus")[1] is None
        )
    said = server.bodies[0]["messages"][1]["content"]
    assert "has 2 classes:\n- tench, Tinca tinca\n- goldfish, Carassius auratus\n\n" in said
