"""LLMs over real HTTP: what is sent, what is retried, what a user reads, and where a key never goes."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
import time
from email.utils import formatdate

import pytest
from builders.openai_server import Fault, OpenAIServer, completion

import madkd_hf
from madkd_hf.llm import LLMError, client, server
from madkd_hf.llm.server import HubLLM, ServerLLM
from madkd_hf.questions.prompts import question_schema


KEY = "sk-thekeythatnobodymayfind"
SAY = [{"role": "user", "content": "Say something."}]
SCHEMA = question_schema(["visual"])


@pytest.fixture
def router(monkeypatch):
    """Inference Providers, at our server."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")

    def serve(*args, **kwargs):
        fake = OpenAIServer(*args, **kwargs).__enter__()
        monkeypatch.setattr(server, "ROUTER", fake.url)
        return fake

    return serve


def failure(script, *options, **more):
    """What the user reads, and how many requests were made."""
    with OpenAIServer(script if isinstance(script, list) else [script]) as fake:
        with pytest.raises(LLMError) as caught:
            ServerLLM("m", fake.url, *options, **more).complete(SAY)
    assert "\n" not in str(caught.value)
    return str(caught.value), len(fake.bodies)


def test_a_request_has_messages_options_schema_and_key(monkeypatch):
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    messages = [{"role": "user", "content": [image, {"type": "text", "text": "Is it red?"}]}]
    with OpenAIServer(["yes"], key=KEY) as fake:
        assert ServerLLM("m", fake.url, KEY).complete(messages, SCHEMA, 50, seed=3) == "yes"
    (body,) = fake.bodies
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA
    assert (body["model"], body["max_tokens"], body["seed"], body["messages"]) == ("m", 50, 3, messages)


def test_no_other_secret_is_sent(monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "hf_mine")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Secret: hf_mine")
    with OpenAIServer(["yes"]) as fake:
        ServerLLM("m", fake.url).complete(SAY)
    assert "hf_mine" not in str(fake.headers) and "authorization" not in fake.headers[0]


def test_addresses_with_and_without_their_path():
    for address in ("/v1", "", "/", "/v1/", "/v1/chat/completions", "/v1?version=2"):
        with OpenAIServer(["yes"]) as fake:
            assert ServerLLM("m", fake.url.removesuffix("/v1") + address).complete(SAY) == "yes"


def test_what_is_no_address_is_refused_without_its_password():
    for address in ("localhost:8000", "ftp://me:word@x", "http://", "x", "http://localhost:99999", "http://[::1"):
        with pytest.raises(ValueError, match="^base_url is .*: expected an address such as http://") as caught:
            ServerLLM("m", address)
        assert "word" not in str(caught.value)
    with pytest.raises(ValueError, match=r"is 'http://\*\*\*@localhost/v1', with a .* password: .* --api_key_env"):
        ServerLLM("m", "http://me:word@localhost/v1")
    with pytest.raises(ValueError, match="The key has line breaks"):
        ServerLLM("m", "http://localhost", "sk-abc\ndef")


@pytest.mark.parametrize("refuses, requests", [(["json_schema"], [2, 1]), (["json_schema", "json_object"], [3, 1])])
def test_a_server_without_json_schema_is_asked_plainly_from_then_on(refuses, requests):
    with OpenAIServer(["yes"], refuses=refuses) as fake:
        llm = ServerLLM("m", fake.url)
        for number in requests:
            before = len(fake.bodies)
            assert llm.complete(SAY, SCHEMA) == "yes"
            assert len(fake.bodies) - before == number


@pytest.mark.parametrize(
    "message, name, instead",
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens'.", "max_tokens", "max_completion_tokens"),
        ("'temperature' does not support 0.7 with this model.", "temperature", None),
        ("Unknown parameter: seed", "seed", None),
    ],
)
def test_options_that_a_model_does_not_take_are_left_out(message, name, instead):
    with OpenAIServer([Fault(400, message), "yes"]) as fake:
        llm = ServerLLM("m", fake.url)
        assert llm.complete(SAY) == llm.complete(SAY) == "yes"
    assert name in fake.bodies[0]
    for body in fake.bodies[1:]:
        assert name not in body and (instead is None or instead in body)


@pytest.mark.parametrize(
    "fault", [*map(Fault, (429, 500, 503)), Fault(200, body="{", headers={"Content-Length": "9"})]
)
def test_what_may_pass_is_tried_again(fault):
    script = [fault, fault, "yes"] if fault.status != 200 else ["yes", fault, "yes"]
    with OpenAIServer(script) as fake:
        llm = ServerLLM("m", fake.url)
        assert [llm.complete(SAY) for _ in range(2)] == ["yes", "yes"]
    assert len(fake.bodies) in (3, 4)


def test_a_server_says_how_long_to_wait():
    for number, least in ((0.4, 0.4), (None, 0.8)):
        asked = str(number) if number else formatdate(time.time() + 3, usegmt=True)
        busy = Fault(429, headers={"Retry-After": asked, "retry-after-ms": "none"})
        with OpenAIServer([busy, "yes"]) as fake:
            begun = time.monotonic()
            ServerLLM("m", fake.url).complete(SAY)
            assert least <= time.monotonic() - begun < 5


@pytest.mark.parametrize(
    "script, expected, requests",
    [
        (Fault(500, "boom"), ("is out of order (500: boom)", "run the same command again later"), 3),
        (Fault(502, body="<h1>Bad\n gateway</h1>"), ("502: <h1>Bad gateway</h1>",), 3),
        (Fault(429, "slow down"), ("allows no more requests for now (429: slow down)",), 3),
        (Fault(429, headers={"retry-after-ms": "999999999"}), ("allows no more requests for now",), 1),
        (Fault(402, "no credit"), ("wants to be paid (402", "add credit"), 1),
        (Fault(400, "odd"), ("refused the request (400: odd)", "--max_tokens"), 1),
        (Fault(422, body='{"detail": [{"msg": "no"}]}'), ("422: ",), 1),
        (Fault(404, "no such model"), ("has no model 'm'", "--llm"), 1),
        (Fault(401, f"Incorrect API key: {KEY}"), ("does not accept the key (401", "***", "--api_key_env"), 1),
        (Fault(200, body="<html>Welcome</html>"), ("no chat completion but '<html>Welcome</html>'", "address"), 1),
        (Fault(200, body='{"choices": []}'), ("no chat completion",), 1),
        (Fault(200, body="[" * 10_000), ("no chat completion",), 1),
    ],
)
def test_errors_are_one_sentence(script, expected, requests):
    told, number = failure(script, KEY, retries=2)
    assert all(part in told for part in expected), told
    assert number == requests and KEY not in told


def test_no_credit_is_not_waited_for():
    for status, key in ((400, "code"), (429, "type"), (429, "code")):
        error = {"message": "You exceeded your current quota.", "type": "x", "code": None, key: "insufficient_quota"}
        told, number = failure(Fault(status, body=json.dumps({"error": error})))
        assert "exceeded" in told and "add credit" in told and number == 1


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 8192 tokens. However, you requested 9000 tokens.",
        "max_tokens is too large: 50000. This model supports at most 16384 completion tokens.",
        "the request exceeds the available context size",
        "`inputs` tokens + `max_new_tokens` must be <= 4096.",
    ],
)
def test_too_much_at_once_is_refused_after_one_request(message):
    told, number = failure(Fault(400, message))
    assert "at once (400: " in told and "lower --max_tokens or --per_request" in told and number == 1


def test_a_redirect_is_reported_and_the_key_goes_nowhere(router):
    with OpenAIServer(["yes"]) as other:
        to = other.url.replace("//", "//user:word@") + "/chat/completions?x=secret"
        for status in (301, 302, 307, 308):
            told, number = failure(Fault(status, headers={"Location": to}), KEY)
            assert f"redirects to {other.url} ({status})" in told and "--base_url" in told and number == 1
            assert "word" not in told and "secret" not in told
        router([Fault(307, headers={"Location": to})])
        with pytest.raises(LLMError):
            HubLLM("owner/model").complete(SAY)
        assert other.headers == []


def test_an_answer_that_takes_too_long_is_asked_for_twice_at_most():
    told, number = failure(Fault(seconds=1), timeout=0.2)
    assert "m gave no answer within 0.2 s: raise --timeout" in told and number == 2


@pytest.mark.parametrize("status", [200, 500])
def test_a_server_that_drips_is_not_waited_for_longer(status):
    begun = time.monotonic()
    told, _ = failure(Fault(status, body="x" * 40, drip=0.1), timeout=0.5, retries=0)
    assert "gave no answer within 0.5 s" in told and time.monotonic() - begun < 2


def test_an_answer_without_end_is_cut(monkeypatch):
    monkeypatch.setattr(client, "LARGEST", 1000)
    told, number = failure(Fault(200, body="x" * 2000))
    assert "answers with more than 1,000 bytes: check the address" in told and number == 1


def test_a_server_that_is_not_there_is_reported_soon():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(LLMError, match="cannot be reached .*refused.*check the address"):
            ServerLLM("m", f"http://127.0.0.1:{taken.getsockname()[1]}").complete(SAY)


def test_the_key_is_in_no_message_and_no_log(caplog):
    caplog.set_level(logging.DEBUG)
    told, _ = failure([Fault(503, f"not yet, {KEY}"), Fault(403, f"no rights for {KEY}")], KEY)
    assert "***" in told and KEY not in told + caplog.text and "not yet" in caplog.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [([{"type": "text", "text": "yes"}, {"type": "text", "text": " and no"}], "yes and no"), ("half \ud83d", "half ?")]
    + [(None, "")],
)
def test_content_in_parts_half_an_emoji_and_nothing(content, expected):
    with OpenAIServer([completion(content)]) as fake:
        assert ServerLLM("m", fake.url).complete(SAY) == expected


def test_an_llm_that_only_thinks_is_stopped_before_it_is_paid_a_third_time():
    thinks = completion(None, "length", reasoning_content="Hmm.")
    with OpenAIServer([thinks, "yes", thinks, thinks]) as fake:
        llm = ServerLLM("m", fake.url)
        assert [llm.complete(SAY) for _ in range(3)] == ["", "yes", ""]
        with pytest.raises(LLMError, match="twice in a row.*: raise --max_tokens"):
            llm.complete(SAY)


def test_inference_providers_get_the_hub_s_token_the_provider_and_the_schema(router):
    fake = router(["yes"], key="hf_mine", refuses=["json_schema"])
    assert HubLLM("owner/model", "together").complete(SAY, SCHEMA, 50, 3) == "yes"
    assert HubLLM("owner/model").complete(SAY) == "yes"
    assert [body["model"] for body in fake.bodies] == ["owner/model:together"] * 2 + ["owner/model"]


def test_inference_providers_expect_a_token_and_the_net(router, monkeypatch):
    router([Fault(401, "Invalid hf_mine")])
    with pytest.raises(LLMError, match=r"Inference Providers does not .*401: Invalid \*\*\*\): log in .*`hf auth"):
        HubLLM("owner/model").complete(SAY)
    with pytest.raises(LLMError, match=r"received another key: .*--base_url") as caught:
        HubLLM("owner/model", token=KEY)
    assert KEY not in str(caught.value)
    monkeypatch.setattr(server, "get_token", lambda: None)
    with pytest.raises(LLMError, match="received none: run `hf auth login`"):
        HubLLM("owner/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(LLMError, match="HF_HUB_OFFLINE=1 is set"):
        HubLLM("owner/model", token="hf_mine")


def test_a_missing_package_is_one_sentence_and_nothing_heavy_is_imported():
    code = f"""
import sys, types
package = sys.modules["madkd_hf"] = types.ModuleType("madkd_hf")
package.__path__ = {madkd_hf.__path__!r}
import madkd_hf.llm, madkd_hf.llm.local
assert "torch" not in sys.modules
sys.modules["openai"] = None
import madkd_hf.llm.server
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith('pip install "madkd_hf[openai]"'), done.stderr
