"""A published student: what is in the repo, who can load it, what its card says, and what never gets there.

The Hub is a small one on this machine; whoever talks to it is a process of its own, as a user's would be.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny
from builders.local_hub import LocalHub
from builders.published_students import (
    ASPECT_FILES,
    BANK,
    CLASSES,
    LEADERBOARDS,
    PLAIN_FILES,
    PROCESSOR,
    ROOT,
    compared,
    student,
)
from builders.quick_python import online_python, quick_python
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification

from madkd_hf import AspectBank, MadkdForImageClassification
from madkd_hf.hub.student import push_student
from madkd_hf.hub.upload import HubRepo


TOKEN = "hf_thetokenthatnobodymayfind"


def labelled(count: int = 12, bank: AspectBank = BANK) -> DatasetDict:
    features = {"image": Image(), "label": ClassLabel(names=list(CLASSES.values()))}
    features |= {"aspect_logits": List(Value("float32"), length=len(bank)), "aspect_bank": Value("string")}
    columns = {"image": tiny.images(count, 32), "label": [i % 4 for i in range(count)]}
    columns["aspect_logits"] = np.random.default_rng(1).normal(size=(count, len(bank))) * 3
    columns["aspect_bank"] = [bank.fingerprint] * count
    rows = Dataset.from_dict(columns, features=Features(features))
    return DatasetDict(train=rows, validation=rows, test=rows)


# With a Hub


def child(hub: LocalHub, folder: Path, code: str, *words, token: str | None = TOKEN) -> subprocess.CompletedProcess:
    """Code in a process that has never heard of anything but this Hub; a stranger's, not of our package either."""
    environment = hub.environment(hub.home, token=token) | {"PYTHONPATH": str(ROOT)}
    python = quick_python() if code == STRANGER else online_python(hub)
    return subprocess.run(
        [python, "-c", code, *map(str, words)],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip


RECIPES = f"""
import os, sys
sys.path[:0] = [{str(ROOT / "tests")!r}]
from madkd_hf.cli import main as command, train as train_student
def recipe(*words):
    sys.argv = ["recipes/train_student.py", *words]
    try:
        command.run(train_student.main)
    except SystemExit as stopped:
        return str(stopped.code)
"""


@pytest.fixture(scope="module")
def hub(child_hub):
    child_hub.reset()
    return child_hub


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    labelled().save_to_disk(folder / "data")
    BANK.save(folder / "data")
    tiny.resnet().save_pretrained(folder / "backbone")
    PROCESSOR.save_pretrained(folder / "backbone")
    tiny.images(1, 32)[0].save(folder / "photo.jpg", quality=100)
    compared(folder / "compared")
    return folder


def words(place: Path, *more: str | Path) -> list[str]:
    """Options of train_student.py: a student in a second."""
    given = ["--dataset", place / "data", "--backbone", place / "backbone", "--pretrained", "false", "--do_predict"]
    given += ["--max_steps", "3", "--per_device_train_batch_size", "6", "--use_cpu", "--report_to", "none"]
    given += ["--disable_tqdm", "true", "--output_dir", place / "birds", "--push_to_hub", "--save_strategy", "no"]
    return [*map(str, [*given, *more])]


TWICE = """
print(recipe(*sys.argv[1:]))
print(recipe(*sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def published(hub, place):
    """The recipe, twice, with the token on the command line alone."""
    more = ["--hub_token", TOKEN, "--hub_license", "mit", "--comparison", str(place / "compared")]
    done = child(hub, place, RECIPES + TWICE, *words(place, *more), token=None)
    assert done.stdout.splitlines()[-1:] == ["None"], done.stdout + done.stderr
    return done


def test_the_recipe_publishes_one_complete_private_commit(hub, place, published):
    files = hub.files("you/birds")
    assert set(files) == ASPECT_FILES | {"figures/accuracies.png", "figures/aspect_learning.png"}
    assert len(hub.commits("you/birds")) == 2  # the Hub's own first one, and ours, though the command ran twice
    assert hub.repos()["model", "you/birds"].private
    assert files["model.safetensors"] == (place / "birds" / "model.safetensors").read_bytes()
    assert published.stdout.count(f"Published: {hub.url}/you/birds\n") == 2
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and len(card.data.eval_results) > 6
    results = json.loads((place / "birds" / "all_results.json").read_text())
    measured = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert measured["test", "accuracy"] == pytest.approx(results["test_accuracy"], abs=1e-4)
    assert measured["validation", "roc_auc"] == pytest.approx(results["eval_aspect_auroc"], abs=1e-4)
    assert "Validation (12 images)" in card.text and "| AUROC |" in card.text and "`3`" in card.text


def test_the_token_gets_nowhere(hub, place, published):
    secret = TOKEN.removeprefix("hf_")
    assert secret not in published.stdout + published.stderr
    assert secret.encode() not in hub.received
    assert not [
        path for path in (place / "birds").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()
    ]
    assert not [name for name in hub.files("you/birds") if name.endswith((".bin", ".pkl", ".pt"))]


@pytest.mark.parametrize("plain", [False, True])
def test_what_could_not_be_published_is_uploaded_by_the_command_in_the_message(hub, place, tmp_path, plain):
    name, out = f"you/late-{plain}", tmp_path / "out"
    hub.fault(f"POST .*/{name}/commit", "status", status=403, times=None)
    given = words(place, "--output_dir", str(out), "--hub_model_id", name, "--push_plain", str(plain))
    done = child(hub, tmp_path, RECIPES + "print(recipe(*sys.argv[1:]))", *given)
    hub.clear_faults()
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"error: The token may not write to the model {name} (403"), done.stdout + done.stderr
    upload = shlex.split(said.partition("publish it with: ")[2])
    assert upload[:4] == ["hf", "upload", name, str(out / "unpublished")] and TOKEN not in said
    assert ("model", name) not in hub.repos() or len(hub.commits(name)) == 1
    environment = hub.environment(tmp_path / "home", token=TOKEN)
    hf = Path(sys.executable).with_name("hf")
    subprocess.run([hf, *upload[1:]], env=environment, check=True, capture_output=True, timeout=240)
    files = hub.files(name)
    assert set(files) == (PLAIN_FILES if plain else ASPECT_FILES) and hub.repos()["model", name].private
    card = ModelCard(files["README.md"].decode())
    results = json.loads((out / "all_results.json").read_text())
    measured = {(result.dataset_split, result.metric_type): result.metric_value for result in card.data.eval_results}
    assert measured["test", "accuracy"] == pytest.approx(results["test_accuracy"], abs=1e-4)
    done = child(hub, tmp_path, RECIPES + "print(recipe(*sys.argv[1:]))", *given)
    assert f"Published: {hub.url}/{name}\n" in done.stdout and not (out / "unpublished").exists()


def test_a_user_s_files_stay_where_a_student_could_not_be_published(tmp_path, monkeypatch):
    mine = tmp_path / "unpublished" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="HF_HUB_OFFLINE=1 is set"):
        push_student(student(), PROCESSOR, HubRepo("you/birds", "model"), unpublished=mine.parent)
    assert mine.read_text() == "mine" and [*tmp_path.rglob("*")] == [mine.parent, mine]


STRANGER = """
import contextlib, io, json, re, sys
sys.modules["madkd_hf"] = None  # whoever imports it fails
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForImageClassification, pipeline
repo, result = sys.argv[1:]
said = io.StringIO()
with contextlib.redirect_stdout(said):
    for block in re.findall("```python\\n(.*?)```", ModelCard.load(repo).text, re.DOTALL):
        exec(block, {})
trust = {} if "plain" in repo else {"trust_remote_code": True}
model = AutoModelForImageClassification.from_pretrained(repo, **trust).eval()
pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    found = {"class": str(type(model)), "logits": model(pixels).logits, "said": said.getvalue()}
found["answers"] = pipeline("image-classification", repo, **trust)(["photo.jpg"] * 3, top_k=9, batch_size=2)
if trust:
    look = pipeline("aspect-classification", repo, **trust)
    found["one"], found["many"] = look("photo.jpg", top_k=2), look(["photo.jpg"] * 3, batch_size=2)
    found["text"], found["default"] = str(found["one"]), type(pipeline(model=repo, **trust)).__name__
    look.model.save_pretrained("again")
    found["one"], found["many"] = dict(found["one"]), [dict(each) for each in found["many"]]
torch.save(found, result)
"""


def loaded_by_a_stranger(hub: LocalHub, place: Path, folder: Path, repo: str) -> dict:
    (folder / "photo.jpg").write_bytes((place / "photo.jpg").read_bytes())
    done = child(hub, folder, STRANGER, repo, folder / "result.pt")
    assert (folder / "result.pt").is_file(), done.stdout + done.stderr
    return torch.load(folder / "result.pt")


def local_logits(folder: Path) -> torch.Tensor:
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return MadkdForImageClassification.from_pretrained(folder).eval()(pixels).logits


def test_a_stranger_loads_it_and_runs_what_the_card_shows(hub, place, published, tmp_path):
    found = loaded_by_a_stranger(hub, place, tmp_path, "you/birds")
    assert "transformers_modules" in found["class"]
    torch.testing.assert_close(found["logits"], local_logits(place / "birds"), atol=1e-6, rtol=0)
    assert [len(answer) for answer in found["answers"]] == [4, 4, 4]
    one = found["one"]
    assert set(one) == {"classes", "aspects"} and len(one["classes"]) == 2
    for own, other in zip(one["classes"], found["answers"][0], strict=False):  # alone, and in a batch
        assert own == {"label": other["label"], "score": pytest.approx(other["score"], abs=1e-6)}
    assert {each["label"]: each["question"] for each in one["aspects"]} == dict(zip(BANK.ids, BANK.questions))
    scores = [each["score"] for each in one["aspects"]]
    assert scores == sorted(scores, reverse=True) and all(0 < score < 1 for score in scores)
    assert len(found["many"]) == 3 and len(found["many"][0]["classes"]) == 4
    assert f"  {one['aspects'][0]['label']}: {scores[0]:.2f}" in found["text"]
    assert re.search(r"aspect-\d: 0\.\d\d", found["said"])
    assert found["default"] == "AspectClassificationPipeline"


OTHERS = """
from pathlib import Path
import torch
from datasets import load_dataset
from transformers import AutoImageProcessor
import madkd_hf
from madkd_hf import AspectBank, MadkdForImageClassification, MadkdTrainer, MadkdTrainingArguments
from madkd_hf.hub import retries
from madkd_hf.hub.student import push_student
from madkd_hf.hub.upload import HubRepo
retries._pause = lambda state: 0
os.environ["HF_TOKEN"] = sys.argv[1]
rows = load_dataset("you/labelled")
bank = AspectBank.load("you/labelled")
torch.manual_seed(0)
model = MadkdForImageClassification.from_backbone("you/base", dict(enumerate(["cat", "dog", "cow", "hen"])), bank)
def trainer(name, **settings):
    args = MadkdTrainingArguments("plain-birds", hub_model_id=name, use_cpu=True, report_to="none", **settings)
    processor = AutoImageProcessor.from_pretrained("you/base")
    return MadkdTrainer(model, args, None, rows["train"], rows["train"], processor)
def attempt(call, *args, **kwargs):
    try:
        call(*args, **kwargs)
        print("failed: not")
    except Exception as error:
        print("failed:", type(error).__name__, error)
other_rows = load_dataset("you/others", split="train")
run = trainer("you/plain-birds", max_steps=1, push_plain=True, push_to_hub=True, disable_tqdm=True)
run.train()
run.evaluate()
run.save_model()  # the Trainer's contract: it pushes
other = trainer("switched")
print("commit", other.push_to_hub(commit_message="with aspects", private=False).oid)
other.push_to_hub(commit_message="plain", plain=True, license="mit")
print("future", other.push_to_hub(blocking=False, plain=True, revision="next").result().commit_url)
attempt(trainer("you/switched").push_to_hub, license="apache2")
# As the examples of transformers call it, after evaluations of all kinds
example = trainer("you/example")
example.evaluate()
example.evaluate(rows["test"])
example.evaluate(other_rows)
example.predict(rows["test"].remove_columns("label"))
example.push_to_hub(
    "by example", finetuned_from="you/base", tasks="image-classification", dataset_tags=["you/labelled"],
    dataset="Birds with labels", dataset_args="default", tags=["vision"], language="en",
)
# A published student as the backbone of another
second = MadkdForImageClassification.from_backbone("you/example", {0: "a", 1: "b"}, bank)
push_student(second, AutoImageProcessor.from_pretrained("you/base"), HubRepo("second", "model"))
def collate(batch):
    return {}
alone = MadkdTrainingArguments("alone", use_cpu=True, report_to="none")
attempt(MadkdTrainer(model, alone, collate).push_to_hub)
attempt(MadkdTrainer, model, alone.set_push_to_hub("you/alone"), collate)
attempt(alone.set_push_to_hub, "you/alone", "every_save")
alone.hub_strategy = "checkpoint"
attempt(MadkdTrainer, model, alone, collate)
print("request", trainer("somebody/theirs", hub_create_pr=True).push_to_hub("a gift").pr_url)
"""


def test_other_ways_to_publish(hub, place, tmp_path):
    data = {"aspects.json": (place / "data" / "aspects.json").read_bytes()}
    labelled()["train"].to_parquet(tmp_path / "train.parquet")
    parquet = (tmp_path / "train.parquet").read_bytes()
    hub.add_repo("you/others", {"data/train-00000-of-00001.parquet": parquet}, "dataset")
    data |= {f"data/{split}-00000-of-00001.parquet": parquet for split in ("train", "test")}
    dataset_commit = hub.add_repo("you/labelled", data, "dataset")
    front = b"---\ntags: [madkd]\nlicense: cc0-1.0\nextra_gated_prompt: Who are you?\n---\n"
    hub.add_repo("you/example", {"README.md": front})
    AutoModelForImageClassification.from_config(tiny.resnet()).save_pretrained(tmp_path / "base")
    PROCESSOR.save_pretrained(tmp_path / "base")
    base_commit = hub.add_repo("you/base", tmp_path / "base")
    hub.add_repo("somebody/theirs", {"README.md": b"theirs", "model.safetensors": b"theirs"})
    hub.fault("POST /api/models/you/switched/commit/main", "status", status=500, times=2)
    done = child(hub, tmp_path, RECIPES + OTHERS, TOKEN, token=None)
    assert "request" in done.stdout, done.stdout + done.stderr
    assert TOKEN not in done.stdout + done.stderr and TOKEN.encode() not in hub.received

    files = hub.files("you/plain-birds")
    assert set(files) == PLAIN_FILES | LEADERBOARDS and len(hub.commits("you/plain-birds")) == 2
    card = ModelCard(files["README.md"].decode())
    assert card.data.base_model == "you/base" and card.data.datasets == ["you/labelled"]
    assert card.data.eval_results[0].dataset_revision == dataset_commit
    assert base_commit in card.text and dataset_commit in card.text
    found = loaded_by_a_stranger(hub, place, tmp_path, "you/plain-birds")
    assert "transformers.models.resnet" in found["class"]
    torch.testing.assert_close(found["logits"], local_logits(tmp_path / "plain-birds"), atol=1e-5, rtol=0)

    card = ModelCard(hub.files("you/example")["README.md"].decode())
    assert card.data.datasets == ["you/labelled"] and card.data.language == "en" and "vision" in card.data.tags
    assert card.data.license == "cc0-1.0" and card.data.to_dict()["extra_gated_prompt"] == "Who are you?"  # as it was
    assert "| Validation (12 images) | Test (12 images) | Train (12 images) |" in re.sub(" +", " ", card.text)
    assert "Measured: validation and test on [you/labelled](" in card.text and "train on [you/others](" in card.text
    splits = {(each.dataset_type, each.dataset_split) for each in card.data.eval_results}
    assert splits == {("you/labelled", "validation"), ("you/labelled", "test"), ("you/others", "train")}

    config = json.loads(hub.files("you/second")["config.json"])
    assert config["base_model"] == "you/example"
    assert config["base_model_revision"] == hub.commits("you/example")[0]["oid"]
    assert config["backbone_config"]["model_type"] == "resnet"

    assert [commit["title"] for commit in hub.commits("you/switched")][:2] == ["plain", "with aspects"]
    assert set(hub.files("you/switched")) == PLAIN_FILES  # the code went with the aspects
    assert not hub.repos()["model", "you/switched"].private
    assert hub.commits("you/switched", revision="next")[0]["title"] == "End of training"
    failed = [line.removeprefix("failed: ") for line in done.stdout.splitlines() if line.startswith("failed: ")]
    expected = ["HubError The Hub knows no licence 'apache2': pass one of its identifiers"]
    expected += ["HubError There is no image processor to publish with the student: pass it as processing_class"] * 2
    expected += [f"ValueError hub_strategy='{each}' would push unfinished" for each in ("every_save", "checkpoint")]
    assert [sentence.startswith(begin) for sentence, begin in zip(failed, expected)] == [True] * 5, failed
    assert hub.files("somebody/theirs")["model.safetensors"] == b"theirs"
    assert set(hub.files("somebody/theirs", revision="refs/pr/1")) >= PLAIN_FILES - {".gitattributes"}


REFUSED = """
import json
from madkd_hf.hub import retries
retries._pause = lambda state: 0
place, good, reading, words = *sys.argv[1:4], sys.argv[4:]
for token, more in [
    (None, []),
    ("hf_thiswrongtokenisofnobody", []),
    (reading, []),
    (good, ["--hub_model_id", "somebody/theirs"]),
    (good, ["--hub_model_id", "you/taken"]),
    (good, ["--hub_model_id", "a name/with/slashes"]),
    (good, ["--hub_license", "apache2"]),
    (good, ["--hub_strategy", "every_save"]),
    (good, ["--comparison", place + "/data"]),
]:
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    print("said", recipe(*words, *more))
from huggingface_hub import constants
endpoint, constants.ENDPOINT = constants.ENDPOINT, "http://127.0.0.1:9"
print("said", recipe(*words))
constants.ENDPOINT = endpoint
print("said", recipe(*words, "--comparison", place + "/foreign"))
print("trained", os.path.exists(place + "/birds-refused"))
print("said", recipe(*words, "--hub_model_id", "you/kept"))
"""


def test_what_cannot_be_published_is_told_in_one_sentence_before_training(hub, place, tmp_path):
    hub.add_repo("you/taken", {"model.safetensors": b"something else"})
    hub.add_repo("you/kept", {"README.md": b"---\ntags: [madkd]\n---\n", "model.safetensors": b"old"})
    hub.fault("POST /api/models/you/kept/commit", "status", status=500, times=None)
    reading = "hf_readonlytokenofyou"
    compared(place / "foreign", bank="0" * 16)
    given = words(place, "--hub_model_id", "you/new", "--output_dir", str(place / "birds-refused"))
    done = child(hub, tmp_path, RECIPES + REFUSED, place, TOKEN, reading, *given, token=None)
    hub.clear_faults()
    said = [line.removeprefix("said error: ") for line in done.stdout.splitlines() if line.startswith("said ")]
    expected = [
        "Cannot publish you/new without a token: run `hf auth login`",
        "The Hub does not accept the token",
        "The token of you may only read: make one that may write",
        "you may not write to somebody/theirs: pass a name under one of you",
        "The name you/taken is taken: that model holds model.safetensors",
        "'a name/with/slashes' is no name for a repo",
        "The Hub knows no licence 'apache2': pass one of its identifiers",
        "hub_strategy='every_save' would push unfinished students in several commits: leave it at end",
        f"{place / 'data'} holds no comparison",
        "The Hub at http://127.0.0.1:9 cannot be reached",
        f"The comparison in {place / 'foreign'} is about other questions than the student's",
        "The Hub refused to publish the model you/kept (500",
    ]
    assert len(said) == len(expected), done.stdout + done.stderr
    for sentence, begin in zip(said, expected):
        assert sentence.startswith(begin), sentence
    assert ("model", "you/new") not in hub.repos() and "trained False" in done.stdout
    assert hub.files("you/kept")["model.safetensors"] == b"old" and len(hub.commits("you/kept")) == 1
    assert "wrongtoken" not in done.stdout + done.stderr and TOKEN not in done.stdout + done.stderr


@pytest.mark.parametrize("token", [TOKEN, "hf_wrong"])
def test_two_processes_publish_once_or_say_once_why_not(hub, place, token):
    out = place / f"two-{token == TOKEN}"
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [online_python(hub), "-m", *launch, ROOT / "recipes/train_student.py", *words(place, "--output_dir", out)],
        cwd=place, env=hub.environment(hub.home, token=token), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    if token == TOKEN:
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Published: ") == 1
        assert len(hub.commits(f"you/{out.name}")) == 2
    else:
        assert done.returncode != 0
        assert done.stderr.count("error: The Hub does not accept the token") == 1, done.stderr
        assert not out.exists()


def test_offline_is_told_at_once(place, capsys):
    from madkd_hf.cli import student as training
    from madkd_hf.cli import train

    with pytest.raises(OSError, match="HF_HUB_OFFLINE=1 is set; unset it, or leave --push_to_hub out"):
        training.train(*train.parse(words(place)))
