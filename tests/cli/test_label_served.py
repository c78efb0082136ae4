"""`madkd label` with a teacher behind a server: what it leaves, what it survives, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import numpy as np
import pytest
from builders import tiny
from builders.coco import coco_rows
from builders.commands import ROOT, recipe, refuse
from builders.llm_server import LLMServer, Model
from builders.quick_python import warm_python
from datasets import DatasetDict, load_from_disk
from PIL import Image

from madkd_hf import AspectBank


KEY = "sk-thekeythatnobodymayfind"
PROBE = 5  # requests
SHARD = 4
IMAGES = 20


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Photographs in folders, and questions."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    colours = np.random.default_rng(0).integers(0, 256, (IMAGES, 3)).tolist()
    for i, colour in enumerate(colours):
        folder = tmp_path / "photos" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), tuple(colour)).save(folder / f"{i:02d}.png")
    tiny.bank(3).save(tmp_path / "aspects.json")
    return tmp_path


def words(place, *servers, out="out"):
    urls = [getattr(server, "url", server) for server in servers]
    argv = ["--dataset", place / "photos", "--bank", place / "aspects.json", "--teacher", *urls]
    return [*argv, "--teacher_model", "tiny", "--output_dir", place / out, "--shard_size", SHARD]


def truth(place, model, prompt="Answer with yes or no. "):
    rows = load_from_disk(place / "out")["train"]
    questions = AspectBank.load(place / "aspects.json").questions
    return np.array([[model.answer(image, prompt + text)[0] for text in questions] for image in rows["image"]])


def answers(place, out="out"):
    return np.array(load_from_disk(place / out)["train"]["aspect_logits"][:])


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_it_labels_and_says_what_it_took_and_the_key_is_nowhere(place, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", KEY)
    with LLMServer(key=KEY) as server:
        options = ["--teacher_key_variable", "MY_KEY", "--price_per_million", "2.5", "--work_dir", place / "work"]
        recipe("label", *words(place, server), *options)
        np.testing.assert_allclose(answers(place), truth(place, server.model), atol=1e-5)
        assert len(server.requests) == PROBE + 3 * IMAGES
        told = capfd.readouterr()
        assert f"Asked by chat-ids (as sent, no rounding seen): {PROBE + 3 * IMAGES} requests" in told.out
        assert " tokens, 0." in told.err and "USD" in told.err
        recipe("label", *words(place, server), *options)
        assert len(server.requests) == 2 * PROBE + 3 * IMAGES
    provenance = AspectBank.load(place / "out").provenance
    assert provenance["model"] == "tiny" and provenance["dialect"] == "chat-ids" and provenance["mass"] == "known"
    assert provenance["served"] == {"by": "builders", "root": "tiny-tiny", "version": "1.2.3"}
    content = everything(place / "out") + everything(place / "work") + (told.out + told.err).encode()
    assert KEY.encode() not in content and str(server.port).encode() not in everything(place / "out")


def test_several_servers_by_command_line_and_by_yaml(place):
    with LLMServer() as one, LLMServer() as other:
        recipe("label", *words(place, one, other))
        assert len(one.requests) > PROBE and len(other.requests) > PROBE
        np.testing.assert_allclose(answers(place), truth(place, one.model), atol=1e-5)
        (place / "two.yaml").write_text(json.dumps({"teacher": [one.url, other.url], "teacher_model": "tiny"}))
        argv = words(place, out="other")
        argv = [word for word in argv if word not in ("--teacher", "--teacher_model", "tiny")]
        recipe("label", "--config", place / "two.yaml", *argv)
    np.testing.assert_array_equal(answers(place, "other"), answers(place))


@pytest.mark.slow
def test_killed_it_goes_on_and_asks_nothing_twice(place):
    argv = [*words(place, "URL"), "--work_dir", place / "work"]
    with LLMServer(seconds=0.02) as server:
        command = [warm_python(), "-m", "madkd_hf", "label", *(str(word).replace("URL", server.url) for word in argv)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command += ["--teacher_requests", "1"]
        running = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
        while len(list(place.glob("work/shards/*.arrow"))) < 2 and running.poll() is None:
            time.sleep(0.02)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=60)
    shards = len(list(place.glob("work/shards/[!.]*.arrow")))
    assert 2 <= shards < IMAGES / SHARD
    with LLMServer() as server:
        recipe("label", *[server.url if word == "URL" else word for word in argv])
        assert len(server.requests) == PROBE + 3 * (IMAGES - SHARD * shards)
        np.testing.assert_allclose(answers(place), truth(place, server.model), atol=1e-5)


def test_another_model_of_the_same_name_is_refused_when_a_job_goes_on(place):
    fail = lambda number, path, body: "drop" if number > PROBE + 20 else None  # noqa: E731
    argv = ["--work_dir", place / "work", "--teacher_retries", "0"]
    with LLMServer(fault=fail) as server:
        assert "cannot be reached" in refuse("label", *words(place, server), *argv)
    shards = sorted(place.glob("work/shards/*"))
    assert shards
    with LLMServer(Model(seed=1)) as other:
        told = refuse("label", *words(place, other), *argv)
        assert "serves another model under the name 'tiny' than when this job began (its answer to" in told
        assert "pass another work_dir" in told and len(other.requests) == PROBE
    with LLMServer(root="another") as other:
        told = refuse("label", *words(place, other), *argv)
        assert 'its teacher served root is "tiny-tiny", here "another"' in told
    assert sorted(place.glob("work/shards/*")) == shards
    with LLMServer() as server:
        recipe("label", *words(place, server), *argv)
        np.testing.assert_allclose(answers(place), truth(place, server.model), atol=1e-5)


def test_refusals_stand_in_the_summary_the_bank_and_the_card(place, capfd, hub):
    def refuse_some(number, answer, body):
        for each in answer["answers"]:
            if number >= PROBE and each["name"] == "q1" and each["probability"] > 0.5:
                each.clear()
                each |= {"type": "refusal", "name": "q1"}
        return answer

    with LLMServer(Model(spread=1.0), dialects=("decisions",), mangle=refuse_some) as server:
        argv = ["--push_to_hub", "--hub_dataset_id", "you/refused", "--hub_license", "mit"]
        recipe("label", *words(place, server), *argv)
    missing = int(np.isnan(answers(place)).sum())
    assert 0 < missing < IMAGES
    counts = {"answers": 3 * IMAGES, "refused": missing, "without_yes_or_no": 0}
    assert AspectBank.load(place / "out").provenance["not_answered"] == counts
    share = f"{missing} ({missing / (3 * IMAGES):.2%}) were refused"
    assert share in capfd.readouterr().out
    assert share in hub.files("you/refused", "dataset")["README.md"].decode()


def test_options_of_other_teachers_are_refused(place):
    with LLMServer() as server:
        said = refuse("label", *words(place, server), "--dtype", "float32")
        assert "has no option 'dtype': leave it out" in said
    said = refuse("label", *words(place, ROOT / "recipes" / "easy_vqa" / "teacher"))
    assert "--teacher_model is about a teacher behind a server" in said


def test_an_image_that_is_too_large_is_named_or_left_out(place):
    from builders.openai_server import Fault

    draw = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(draw).save(place / "photos" / "a" / "zz.png")
    large = lambda number, path, body: Fault(413, "too large") if len(str(body)) > 50_000 else None  # noqa: E731
    with LLMServer(fault=large) as server:
        said = refuse("label", *words(place, server))
        assert "a/zz.png" in said and "413: too large" in said and "on_error='skip'" in said
        recipe("label", *words(place, server), "--on_error", "skip")
    logits = load_from_disk(place / "out")["train"]["aspect_logits"][:]
    assert sum(row is None for row in logits) == 1 and len(logits) == IMAGES + 1


def test_a_dry_run_tells_what_it_will_take_and_labels_nothing(place, capfd):
    with LLMServer() as server:
        recipe("label", *words(place, server), "--dry_run", "--price_per_million", "2.5")
        assert len(server.requests) == PROBE + 3 * 3
        tokens = sum(
            101 + len(body["messages"][0]["content"][1]["text"].split()) for _, body in server.requests[PROBE:]
        )
    told = capfd.readouterr().out
    assert "tiny, asked by chat-ids (as sent, no rounding seen): 20 images, 3 questions each, 60 requests." in told
    total = round(tokens / 3 * IMAGES)
    assert f"About {total:,} tokens ({tokens / 3:,.0f} an image, measured on 3 images)." in told
    assert f"About {total * 2.5 / 1e6:,.4f} USD at 2.5 USD for a million tokens." in told
    assert "requests a second of the measurement" in told and not (place / "out").exists()
    local = ["--teacher", ROOT / "recipes" / "easy_vqa" / "teacher", "--dry_run"]
    argv = [word for word in words(place) if word not in ("--teacher", "--teacher_model", "tiny")]
    assert "--dry_run tells what a teacher behind a server will take" in refuse("label", *argv, *local)


def test_a_dry_run_counts_objects(tmp_path, capfd):
    scenes = DatasetDict(train=coco_rows(4))
    scenes.save_to_disk(tmp_path / "scenes")
    tiny.bank(3).save(tmp_path / "aspects.json")
    objects = sum(len(row["objects"]["bbox"]) for row in scenes["train"])
    with LLMServer(dialects=("systemone",)) as server:
        argv = [
            "--dataset",
            tmp_path / "scenes",
            "--bank",
            tmp_path / "aspects.json",
            "--output_dir",
            tmp_path / "out",
        ]
        argv += ["--boxes_column", "objects", "--box_format", "pascal_voc", "--label_column", "category"]
        argv += ["--output_dir", tmp_path / "out"]
        recipe("label", *argv, "--teacher", server.url, "--teacher_model", "tiny", "--dry_run")
        assert len(server.requests) == PROBE + 3
    assert f"{objects} objects, 3 questions each, {objects} requests." in capfd.readouterr().out


@pytest.mark.slow
def test_several_processes_share_the_work(place):
    with LLMServer() as server:
        command = [warm_python(), "-m", "madkd_hf", "label", "--num_processes", "2"]
        command += map(str, [*words(place, server), "--work_dir", place / "work"])
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        np.testing.assert_allclose(answers(place), truth(place, server.model), atol=1e-5)
        assert len(server.requests) == 2 * PROBE + 3 * IMAGES
