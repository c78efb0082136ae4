"""What servers do wrong, over real HTTP: what passes is waited for, what does not is told in one sentence."""

from __future__ import annotations

import json
import socketserver
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from builders import tiny
from builders.llm_server import LLMServer, Model
from builders.openai_server import Fault, OpenAIServer

from madkd_hf.teachers import UnreadableImageError, load_teacher


BANK = tiny.bank(3)
IMAGES = tiny.images(6)
KEY = "sk-thekeythatnobodymayfind"
PROBE = 5  # requests


def served(server, **options):
    return load_teacher(server.url, **{"model": "tiny", "retries": 3, "timeout": 10.0, **options})


def refused(server, **options) -> str:
    """The sentence with which a server is refused before the first image."""
    with pytest.raises((ValueError, OSError)) as caught:
        served(server, **options)
    told = str(caught.value)
    assert "\n" not in told and KEY not in told and len(told.split()) < 70, told
    return told


def at(*numbers, fault):
    """A fault for these requests behind the probe."""
    return lambda number, path, body: fault if number - PROBE in numbers else None


def first(*numbers, fault):
    """A fault for these requests behind the probe, unless they repeat one that had it: more tries than there are."""
    failed = []

    def choose(number, path, body):
        if number - PROBE not in numbers or body in failed:
            return None
        failed.append(body)
        return fault

    return choose


@pytest.mark.parametrize(
    "fault",
    [
        Fault(429),
        Fault(429, headers={"Retry-After": "0.2", "retry-after-ms": "none"}),
        Fault(500),
        Fault(503, body="<html>busy</html>"),
        Fault(503, headers={"Retry-After": "à bientôt"}),
        "drop",
        Fault(200, body='{"choices": []}'),
        Fault(200, body='{"choices": [{"message": {}, "logprobs": {"content": []'),
    ],
)
def test_what_may_pass_is_asked_again(fault):
    with LLMServer(fault=first(0, 3, 4, 9, fault=fault)) as server:
        teacher = served(server)
        reading = teacher.read(IMAGES, BANK)
        questions = [teacher.dialect.text(question) for question in BANK.questions]
        truth = [[server.model.answer(image, question)[0] for question in questions] for image in IMAGES]
    np.testing.assert_allclose(reading.logits.numpy(), truth, atol=1e-5)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000 + b"\r\nContent-Length: 2\r\n\r\n{}",
    ],
)
def test_an_answer_that_is_no_http_is_told_in_a_sentence(answer):
    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            self.request.recv(1 << 16)
            self.request.sendall(answer)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            told = refused(SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}"), retries=1)
        finally:
            server.shutdown()
    assert "no HTTP" in told


def broken(change):
    """Answers behind the probe whose log-probabilities are changed."""

    def mangle(number, answer, body):
        if number >= PROBE:
            change(answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"])
        return answer

    return mangle


@pytest.mark.parametrize(
    "change, expected, times",
    [
        (lambda listed: listed.pop(), "without token_id:", 1),
        (lambda listed: listed.clear(), "without log-probabilities", 1),
        (lambda listed: listed[0].update(logprob=float("nan")), "whose log-probability .* is nan", 3),
        (lambda listed: listed[0].update(logprob="-1"), "whose log-probability .* is -1", 3),
        (lambda listed: listed[0].update(logprob=0.5), "add up to .*, more than 1: .*--logprobs-mode", 1),
        (lambda listed: [entry.update(logprob=-9999.0) for entry in listed], "ruled out: .*--logprobs-mode", 1),
        (lambda listed: listed.__setitem__(0, 7), "another form than OpenAI's", 1),
    ],
)
def test_an_answer_that_is_none_stops_the_job(change, expected, times):
    with LLMServer(mangle=broken(change)) as server:
        teacher = served(server, requests=1)
        many = " 3 times in a row" if times > 1 else ""
        with pytest.raises(OSError, match=rf"127.0.0.1:\d+ gives{many} an answer .*{expected}"):
            teacher.read(IMAGES[:1], BANK)
    assert len(server.requests) == PROBE + times


@pytest.mark.parametrize(
    "spoken, change",
    [
        ("systemone", lambda answers: answers.pop("q1")),
        ("systemone", lambda answers: answers["q0"].update(noul=1.5)),
        ("systemone", lambda answers: answers["q0"].update(noul=None)),
        ("systemone", lambda answers: answers["q0"].update(type="score")),
        ("decisions", lambda answers: answers.pop()),
        ("decisions", lambda answers: answers[0].update(name="q1")),
        ("decisions", lambda answers: answers[0].update(probability=float("nan"))),
        ("decisions", lambda answers: answers[0].update(name=None)),
    ],
)
def test_several_answers_are_checked_one_by_one(spoken, change):
    mangle = lambda number, answer, body: (number >= PROBE and change(answer["answers"]), answer)[1]  # noqa: E731
    with LLMServer(dialects=(spoken,), mangle=mangle) as server:
        teacher = served(server, requests=1)
        with pytest.raises(OSError, match="gives 3 times in a row an answer"):
            teacher.read(IMAGES[:1], BANK)


def test_one_bad_answer_is_asked_for_again():
    def mangle(number, answer, body):
        if number in (PROBE, PROBE + 4):
            answer["answers"]["q0"]["noul"] = "NaN"
        return answer

    with LLMServer(dialects=("systemone",), mangle=mangle) as server:
        reading = served(server, requests=1).read(IMAGES, BANK)
    assert np.isfinite(reading.logits.numpy()).all() and len(server.requests) == PROBE + len(IMAGES) + 2


def test_a_server_that_is_out_of_order_is_given_up_after_all_retries():
    with LLMServer(fault=lambda number, path, body: Fault(500, "boom") if number >= PROBE else None) as server:
        teacher = served(server, requests=1)
        with pytest.raises(OSError, match=r"is out of order \(500: boom\): run the same command again"):
            teacher.read(IMAGES, BANK)
    assert len(server.requests) == PROBE + 4


def test_a_slow_drip_ends_with_the_time_that_an_answer_may_take():
    drip = Fault(200, body=json.dumps({"choices": []}) + " " * 100, drip=0.05)
    with LLMServer(fault=at(*range(100), fault=drip)) as server:
        teacher = served(server, timeout=0.5)
        with pytest.raises(OSError, match=r"gave no answer within 0.5 s: raise --teacher_timeout"):
            teacher.read(IMAGES[:1], BANK)


def test_a_huge_answer_is_not_read_to_its_end():
    with LLMServer(fault=at(0, fault=Fault(200, body="[" + "1," * 6_000_000))) as server:
        with pytest.raises(OSError, match="answers with more than 10,000,000 bytes"):
            served(server).read(IMAGES, BANK)


def test_an_image_that_the_server_does_not_take_is_named_and_the_others_are_not_asked_again():
    from builders.llm_server import colour_of

    def large(number, path, body):
        return Fault(413, "Request Entity Too Large") if len(str(body)) > 20_000 and number >= PROBE else None

    images = [*IMAGES[:3], tiny.images(1, 100)[0], *IMAGES[3:]]
    with LLMServer(fault=large) as server:
        teacher = served(server)
        with pytest.raises(UnreadableImageError, match="413: Request Entity Too Large") as caught:
            teacher.read(images, BANK)
        assert caught.value.index == 3
        before = len(server.requests)
        reading = teacher.read(IMAGES, BANK)
        assert len(server.requests) == before
    assert np.isfinite(reading.logits.numpy()).all() and colour_of(images[3])


@pytest.mark.parametrize(
    "settings, options, expected",
    [
        ({"name": "other"}, {}, r"has no model 'tiny': it has other; pass another --teacher_model"),
        ({"model": Model(blind=True)}, {}, "tiny does not see images: it answers the same"),
        ({"key": KEY}, {}, r"does not accept the key \(401.*--teacher_key_variable"),
        ({"dialects": ()}, {}, "speaks none of chat-ids, chat-topk, systemone, decisions .*404"),
        ({"dialects": ("decisions",)}, {"dialect": "chat-ids"}, "speaks none of chat-ids "),
        ({"dialects": ("systemone",)}, {"dialect": "systemone", "system": "x"}, "leave out --system"),
        (
            {"fault": lambda *_: Fault(200, body="<html>Welcome</html>")},
            {},
            "but '<html>Welcome</html>': check",
        ),
        ({"fault": lambda *_: Fault(400, "image input is not supported by this model")}, {}, "takes no images"),
        ({"fault": lambda *_: Fault(402, "no credit")}, {}, "wants to be paid"),
        ({"fault": lambda *_: "drop"}, {"retries": 0}, "cannot be reached"),
        ({}, {"model": None}, "No model given: pass --teacher_model"),
        ({}, {"dialect": "morse"}, "Unknown dialect 'morse': expected auto or one of chat-ids"),
        ({}, {"prompt": "Well?"}, "has no place for the question"),
        ({}, {"answer_tokens": ("yes", "no", "maybe")}, "answer_tokens takes two words"),
        ({}, {"key_variable": KEY}, r"no key in the environment variable \*\*\*"),
        ({}, {"requests": 0}, "requests is 0: expected more than 0"),
        ({}, {"tokenizer": "/nowhere/at/all"}, "There is no folder /nowhere/at/all: pass --teacher_tokenizer"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_first_image(settings, options, expected):
    import re

    with LLMServer(**settings) as server:
        told = refused(server, **options)
    assert re.search(expected, told), told


def mangled(change):
    def mangle(number, answer, body):
        change(answer["choices"][0])
        return answer

    return mangle


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda choice: choice.pop("logprobs"), "answers for 'tiny' without log-probabilities"),
        (lambda choice: choice["message"].update(content="<think>"), "tiny thinks before it answers .*'<think>'"),
        (
            lambda choice: choice.update(message={"content": None, "reasoning_content": "The user"}),
            "tiny thinks before it answers .*'The user'",
        ),
        (lambda choice: choice.update(message={"refusal": "I cannot"}), "tiny refuses to answer when it is asked"),
        (
            lambda choice: [entry.update(logprob=5.0) for entry in choice["logprobs"]["content"][0]["top_logprobs"]],
            "--logprobs-mode raw_logprobs",
        ),
    ],
)
def test_models_whose_answers_are_none_are_refused(change, expected):
    import re

    with LLMServer(mangle=mangled(change), dialects=("chat-ids", "chat-topk")) as server:
        told = refused(server)
    assert re.search(expected, told), told


def test_a_model_that_says_neither_yes_nor_no_is_refused():
    def mangle(number, answer, body):
        listed = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        listed[:] = [entry for entry in listed if "no" not in entry["token"].lower()]
        return answer

    with LLMServer(mangle=mangle, dialects=("chat-topk",)) as server:
        assert "gives neither yes nor no among the likeliest tokens" in refused(server)


def test_options_that_a_server_does_not_know_are_left_out():
    def strict(number, path, body):
        for name in ("chat_template_kwargs", "logprob_token_ids", "max_completion_tokens"):
            if name in body:
                return Fault(400, f"Unrecognized request argument supplied: {name}")
        return Fault(400, "top_logprobs must be at most 5") if body["top_logprobs"] > 5 else None

    with LLMServer(fault=strict) as server:
        teacher = served(server)
        assert teacher.identity["dialect"] == "chat-topk"
        reading = teacher.read(IMAGES[:1], BANK)
    body = server.requests[-1][1]
    assert body["max_tokens"] == 1 and body["top_logprobs"] == 5 and reading.logits.shape == (1, 3)


def test_a_model_that_was_changed_while_the_server_was_away_is_noticed():
    with LLMServer() as server:
        teacher = served(server, requests=1)
        teacher.prepare(IMAGES[:1], BANK)

        def restart(number, path, body):
            if number == PROBE + 6:
                server.model = Model(seed=1)
                return "drop"

        server.fault = restart
        with pytest.raises(ValueError, match="was away, and now serves another model under the name 'tiny'"):
            teacher.read(IMAGES, BANK)


def test_the_key_goes_to_the_server_and_by_no_redirect_to_another(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with LLMServer(key=KEY) as server:
        served(server, key_variable="MY_KEY").read(IMAGES[:1], BANK)
        assert {headers["authorization"] for headers in server.headers} == {f"Bearer {KEY}"}
    with OpenAIServer(["yes"]) as other:
        to = other.url + "/chat/completions"
        with LLMServer(fault=lambda *_: Fault(307, headers={"Location": to})) as server:
            told = refused(server, key_variable="MY_KEY")
        assert f"redirects to {other.url} (307)" in told and "--teacher" in told and other.headers == []


def test_a_key_is_not_sent_without_tls_to_another_machine(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    with pytest.raises(ValueError, match="without TLS .*: pass an https address, or --teacher_plain_http true"):
        load_teacher("http://192.0.2.1:8000/v1", model="tiny", key_variable="MY_KEY")
    for address in ("http://me:word@localhost/v1", "http://", "https://[::1"):
        with pytest.raises(ValueError, match="^--teacher is ") as caught:
            load_teacher(address, model="tiny")
        assert "word@" not in str(caught.value)
