"""`madkd serve` as a user types it: what it says, how it ends, and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from builders import tiny
from builders.commands import EASY_VQA, ROOT, refuse
from builders.quick_python import warm_python
from builders.served_student import ask, encoded, saved

from madkd_hf.serving.server import listen


KEY = "sk-thekeythatnobodymayfind"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("student") / "student")


def start(*words, **variables):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    command = [warm_python(), "-m", "madkd_hf", "serve", *map(str, words), "--port", "0"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-1, text=True)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_it_says_where_it_is_and_ends_when_requests_are_answered(folder, sent):
    with start(folder) as process:
        line = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
        assert line.startswith(
            f"Serving student (4 labels, 3 questions) at {url}: curl -F image=@photo.jpg {url}/classify"
        )
        statuses = []
        image = encoded(tiny.images(1, 900)[0])
        asked = [threading.Thread(target=lambda: statuses.append(ask(url, "/classify", image)[0])) for _ in range(8)]
        for thread in asked:
            thread.start()
        time.sleep(0.1)
        process.send_signal(sent)
        for thread in asked:
            thread.join(60)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "Stopped: the requests in progress were answered." in out
    assert statuses == [200] * 8 and "Traceback" not in err


def test_with_a_key_other_machines_are_let_in_and_the_key_is_nowhere(folder):
    with start(folder, "--host", "0.0.0.0", "--key_variable", "STUDENT_KEY", STUDENT_KEY=KEY) as process:
        line = process.stdout.readline()
        url = re.search(r"at (http://127\.0\.0\.1:\d+): curl", line)[1]
        assert '-H "Authorization: Bearer $STUDENT_KEY"' in line
        image = encoded(tiny.images(1, 20)[0])
        assert ask(url, "/classify", image)[0] == 401
        assert ask(url, "/classify", image, Authorization=f"Bearer {KEY}")[0] == 200
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and KEY not in line + out + err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "No student given: pass its folder or its Hub id"),
        (["nowhere/at/all"], "There is no folder nowhere/at/all here"),
        (["nowhere/student"], "nowhere/student is no student"),
        (["~nobody-of-this-name/student"], "There is no user whose folder ~nobody-of-this-name is: pass the whole"),
        ([EASY_VQA / "detector"], "only image classifiers are served so far, no detectors"),
        (["{folder}", "--port", "70000"], "expected 0 .any free one. to 65535"),
        (
            ["{folder}", "--port", "{taken}"],
            "Cannot listen at 127.0.0.1, port [0-9]+ .Address already in use.: pass another",
        ),
        (["{folder}", "--host", "no.such.host.invalid"], "Cannot listen at no.such.host.invalid"),
        (["{folder}", "--host", "0.0.0.0"], "lets other machines ask without a key: pass --key_variable"),
        (["{folder}", "--key_variable", "NOT_SET"], "no key in the environment variable NOT_SET"),
        (["{folder}", "--batch_size", "0"], "--batch_size is 0: expected more than 0"),
        (["{folder}", "--max_megapixels", "500"], "expected 170 at most"),
        (["{folder}", "--batch_wait", "-1"], "expected 0 to 1000 milliseconds"),
        (["{folder}", "--device", "abacus"], "There is no device 'abacus' here"),
        (["{folder}", "--prot", "1"], "did you mean 'port'?"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_sentence(words, expected, folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        places = {"folder": folder, "taken": taken.getsockname()[1]}
        said = refuse("serve", *(str(word).format(**places) for word in words))
    assert re.search(expected, said) and said.startswith("error: ") and "\n" not in said


def test_what_is_not_installed_is_named(folder, monkeypatch):
    from madkd_hf.cli import serve

    monkeypatch.setitem(serve.PACKAGES, "no_such_module", "no-such-package")
    assert 'needs no-such-package, which is not installed: pip install "madkd_hf[serving]"' in refuse("serve", folder)


def test_a_student_that_makes_nothing_of_images_is_refused(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "student")
    (tmp_path / "student/preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessorPil", "do_resize": false, "image_mean": [0], "image_std": [1]}'
    )
    assert "makes nothing of a white image" in refuse("serve", tmp_path / "student", "--port", "0")


def test_the_server_is_not_loaded_with_the_package():
    code = "import sys, madkd_hf.cli.serve; print({'fastapi', 'uvicorn', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout == "set()\n"


def test_an_answer_does_not_wait_for_a_full_packet():
    """asyncio turns Nagle's algorithm off for sockets of this protocol alone."""
    with listen("127.0.0.1", 0) as opened:
        assert opened.proto == socket.IPPROTO_TCP


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
def test_all_addresses_are_those_of_ipv4_too():
    with listen("::", 0) as opened:
        socket.create_connection(("127.0.0.1", opened.getsockname()[1]), 10).close()
