"""What strangers send: an answer of 4xx or 503 with one sentence, and the server goes on."""

from __future__ import annotations

import base64
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import tiny
from builders.served_student import BANK, ask, encoded, exchange, serving, student
from PIL import Image


KEY = "sk-thekeythatnobodymayfind"
IMAGE = tiny.images(1, 32)[0]
FAULTS = Path(__file__).parents[3] / "shared" / "faults"


@pytest.fixture(scope="module")
def served():
    return student()


@pytest.fixture(scope="module")
def url(served):
    with serving(served, body=2_000_000, pixels=4_000_000) as address:
        yield address


def png_head(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG that says to be as large, whatever there is of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def gif_bomb() -> bytes:
    content = encoded(Image.new("P", (1, 1)), "GIF")
    return content[:6] + struct.pack("<HH", 60_000, 60_000) + content[10:]


HOSTILE = {
    "nothing": (b"", 422),
    "a PDF named .jpg": (b"%PDF-1.7\n1 0 obj", 422),
    "a web page": (b"<!doctype html><html>", 422),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 422),
    "EPS, for Ghostscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 422),
    "half a PNG": (encoded(IMAGE)[:700], 422),
    "half a JPEG": (encoded(IMAGE, "JPEG")[:500], 422),
    "a JPEG with rubbish in it": (encoded(IMAGE, "JPEG")[:300] + b"\xff\xd8" * 90, 422),
    "50,000 x 50,000 pixels": (png_head(50_000, 50_000), 413),
    "9,000 x 9,000 pixels": (png_head(9_000, 9_000), 413),
    "more pixels than there are": (png_head(2**31 - 1, 2**31 - 1), 413),
    "no pixels": (png_head(0, 10), 422),
    "a line": (encoded(Image.new("RGB", (3000, 1))), 422),
    "a large GIF of one pixel": (gif_bomb(), 413),
    "rows that are missing": (png_head(1000, 1000), 422),
    "rows that unpack to too much": (png_head(10, 10, bytes(50_000_000)), 200),  # what is too much is never unpacked
    "random bytes": (np.random.default_rng(0).bytes(5000), 422),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_a_sentence(name, url):
    content, expected = HOSTILE[name]
    asset = {"type": "image", "data_base64": base64.b64encode(content).decode()}
    question = {"type": "noul", "instructions": BANK.ids[0]}
    body = {"state": "a", "questions": {"q": question}, "assets": {"a": asset}}
    for status, said in (ask(url, "/classify", content), ask(url, "/v1/systemone", body)):
        assert status == expected, said
        if status >= 400:
            assert (
                said["detail"].startswith("The image ") and said["detail"].endswith(".") and "\n" not in said["detail"]
            )
            # A client that labels takes it for what it is: about this image, not about the number of questions.
            assert not re.search(r"questions?\b|too_long|at most \d+|max_length", said["detail"])


@pytest.mark.skipif(not FAULTS.exists(), reason="the folder of faulty inputs is not here")
def test_faulty_inputs_of_other_tests_do_no_harm(url):
    for path in [path for path in sorted(FAULTS.rglob("*")) if path.is_file()]:
        status, _ = ask(url, "/classify", path.read_bytes()[:1_900_000])
        assert status in (200, 413, 422), path


def odd_images() -> dict[str, bytes]:
    rgb = IMAGE.resize((40, 30))
    grey = Image.fromarray((np.arange(1200, dtype=np.uint16) * 54).reshape(30, 40))
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    orientation = Image.Exif()
    orientation[274] = 6
    return {
        "CMYK": encoded(rgb.convert("CMYK"), "JPEG"),
        "16 bits": encoded(grey),
        "1 bit": encoded(rgb.convert("1")),
        "palette": encoded(rgb.convert("P"), "GIF"),
        "transparent": encoded(rgb.convert("RGBA")),
        "float": encoded(rgb.convert("F"), "TIFF"),
        "animated": encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "turned": encoded(rgb, "JPEG", exif=orientation),
        "one pixel": encoded(Image.new("RGB", (1, 1), "red")),
        "three pixels": encoded(Image.new("RGB", (3, 1), "red")),
        "grey": encoded(rgb.convert("L"), "JPEG"),
        "bmp": encoded(rgb, "BMP"),
        "webp": encoded(rgb, "WEBP"),
    }


def test_odd_images_are_seen_as_teacher_and_student_see_them(url, served):
    from madkd_hf.data.images import to_rgb

    for name, content in odd_images().items():
        status, said = ask(url, "/classify", content)
        assert status == 200, (name, said)
        pixels = served.prepare(to_rgb(Image.open(io.BytesIO(content))))
        (expected,) = served.answer([pixels])
        z = list(said["answers"].values())
        np.testing.assert_allclose(z, 1 / (1 + np.exp(-expected.aspect_logits)), atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"state": NaN}',
        b'{"state": "a", "questions": {"q": {"type": "noul", "instructions": Infinity}}}',
        b"[" * 500_000,
        b'{"a":' * 200_000,
        b'{"state": ' + b"9" * 500_000 + b"}",
        b"\xff\xfe\x00\xd8",
        encoded(IMAGE),
        json.dumps({"state": "a", "questions": {f"q{i}": {"type": "noul"} for i in range(10_000)}}).encode(),
        json.dumps({"state": "a", "questions": {"q" * 900_000: {"type": "noul"}}}).encode(),
        json.dumps({"x" * 900_000: 1}).encode(),
        json.dumps({"state": "a", "model": "\ud800" * 1000}).encode(),
    ],
    ids=range(15),
)
def test_hostile_json_is_refused_in_a_sentence(url, body):
    status, said = ask(url, "/v1/systemone", body, Content_Type="application/json")
    assert status in (404, 422) and len(said["detail"]) < 1000 and ask(url, "/health")[0] == 200


def parts(total: int, size: int = 1 << 20):
    for _ in range(total // size):
        yield bytes(size)


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused_and_never_held(url, announced):
    """200 MB, announced or in chunks: the sender reads why, and the memory of the server stays."""
    headers = {"Content_Length": str(200 << 20)} if announced else {"Transfer_Encoding": "chunked"}
    held = memory(url)
    body = (
        parts(200 << 20) if announced else (b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts(200 << 20), b""])
    )
    status, _, said = exchange(url, "/classify", body, **headers)
    assert status == 413 and b"larger than the 2,000,000 bytes" in said
    assert memory(url) < held + 50e6


def memory(url: str) -> float:
    text = ask(url, "/metrics")[1]
    return float(re.search(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)[1])


def raw(url: str, content: bytes, seconds: float = 20) -> bytes:
    """What comes back until the server ends the connection."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=seconds) as connection:
        connection.sendall(content)
        answer = b""
        while part := connection.recv(65536):
            answer += part
        return answer


def test_heads_and_bodies_that_dawdle_are_cut_off(served):
    with serving(served, head_seconds=0.3, seconds=0.5) as url:
        for content in (b"", b"POST /classify HTT", b"POST /classify HTTP/1.1\r\nA: b\r\n"):
            started = time.monotonic()
            assert raw(url, content) == b"" and time.monotonic() - started < 5
        slow = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"
        assert b" 408 " in raw(url, slow) and ask(url, "/classify", encoded(IMAGE))[0] == 200


def test_a_connection_that_sends_byte_by_byte_has_no_more_time(served):
    with serving(served, head_seconds=0.4) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            started = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - started < 8:
                    connection.sendall(b"A")
                    time.sleep(0.05)
            assert time.monotonic() - started < 4


@pytest.mark.parametrize(
    "content",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET / HTTP/9.9\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
        b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /classify HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nzz",
    ],
    ids=range(8),
)
def test_requests_that_are_no_http_do_no_harm(url, content):
    try:
        answer = raw(url, content)
    except ConnectionResetError:  # it had not read all
        answer = b""
    assert answer == b"" or re.match(rb"HTTP/1.1 4\d\d|HTTP/1.1 501", answer), answer
    assert ask(url, "/health")[0] == 200


def test_clients_that_go_away_leave_nothing_behind(url):
    host, _, port = url.removeprefix("http://").partition(":")
    content = encoded(IMAGE)
    head = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(content)
    for sent in (head, head + content[:50], head + content):
        for _ in range(10):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(sent)
    for _ in range(100):
        text = ask(url, "/metrics")[1]
        if "madkd_request_bytes 0.0" in text and "madkd_requests_in_progress 0.0" in text:
            return
        time.sleep(0.05)
    raise AssertionError(text)


def test_who_comes_when_the_queue_is_full_is_told_when_to_come_again(served):
    held, go = threading.Event(), threading.Event()

    def slow(batch, answer=served.answer):
        held.set()
        assert go.wait(60)
        return answer(batch)

    served.answer, before = slow, served.answer
    try:
        with serving(served, queue=1) as url:
            first = threading.Thread(target=lambda: statuses.append(ask(url, "/classify", encoded(IMAGE))[0]))
            statuses: list[int] = []
            first.start()
            assert held.wait(60)
            status, headers, said = exchange(url, "/classify", encoded(IMAGE))
            assert status == 503 and headers["retry-after"] == "1" and b"busy" in said
            assert ask(url, "/health")[0] == 200
            go.set()
            first.join(60)
            assert statuses == [200] and ask(url, "/classify", encoded(IMAGE))[0] == 200
    finally:
        served.answer = before


def test_bodies_together_have_a_limit_and_an_answer_has_its_time(served):
    with serving(served, body=500, held=10) as url:
        assert ask(url, "/classify", bytes(500))[0] == 422  # one always has room
    served.answer, before = lambda batch: time.sleep(1) or before(batch), served.answer
    try:
        with serving(served, seconds=0.2) as url:
            status, headers, said = exchange(url, "/classify", encoded(IMAGE))
    finally:
        served.answer = before
    assert status == 503 and headers["retry-after"] == "5" and b"No answer within 0.2 s" in said


def test_too_many_connections_are_cut_off(served):
    with serving(served, connections=3) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        there = [socket.create_connection((host, int(port))) for _ in range(3)]
        time.sleep(0.2)
        with pytest.raises(OSError):
            ask(url, "/health")
        for connection in there:
            connection.close()
        time.sleep(0.2)
        assert ask(url, "/health")[0] == 200


def test_the_key_is_wanted_everywhere_but_for_health_and_never_told(served, caplog, capfd):
    with serving(served, key=KEY) as url:
        right = {"Authorization": f"Bearer {KEY}"}
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            for headers in (
                {},
                {"Authorization": KEY},
                {"Authorization": f"Basic {KEY}"},
                {"Authorization": "Bearer x"},
            ):
                status, answered, said = exchange(url, path, **headers)
                assert status == 401 and answered["www-authenticate"] == "Bearer" and KEY.encode() not in said
            assert ask(url, path, **right)[0] == (404 if path == "/nowhere" else 200)
        for path in ("/classify", "/v1/systemone"):
            assert ask(url, path, encoded(IMAGE), Authorization="Bearer \xe9")[0] == 401
        assert ask(url, "/classify", encoded(IMAGE), **right)[0] == 200 and ask(url, "/health")[0] == 200
        assert ask(url, "/classify", encoded(IMAGE), Authorization=f"bearer  {KEY}")[0] == 200
        assert exchange(url, "/classify", parts(50 << 20), Content_Length=str(50 << 20))[0] == 401
        head = b"POST /classify HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5000000\r\n\r\n"
        answer = raw(url, head)  # and nothing is sent in vain
        assert answer.startswith(b"HTTP/1.1 401") and b"connection: close" in answer
        assert KEY not in ask(url, "/metrics", **right)[1]
    told = capfd.readouterr()
    assert KEY not in caplog.text + told.out + told.err


@pytest.mark.parametrize(
    ("path", "expected"),
    [("?top_k=-1", 422), ("?top_k=x", 422), ("?top_k=999999999999", 422), ("?top_k=0", 200), ("?reasons=99999", 200)],
)
def test_options_of_an_upload(url, path, expected):
    status, said = ask(url, f"/classify{path}", encoded(IMAGE))
    assert status == expected and (status == 200 or "is a number from 0 on" in said["detail"])
    if path == "?top_k=0":
        assert said["probabilities"] == [] and said["class"]


def test_a_request_that_makes_the_student_fail_is_told_and_the_server_goes_on(served):
    def broken(batch):
        raise RuntimeError("out of memory")

    served.answer, before = broken, served.answer
    with serving(served) as url:
        status, said = ask(url, "/classify", encoded(IMAGE))
        assert status == 500 and said["detail"].startswith("The server failed") and "memory" not in said["detail"]
        served.answer = before
    with serving(served) as url:
        assert ask(url, "/classify", encoded(IMAGE))[0] == 200
