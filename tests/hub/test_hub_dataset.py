"""An aspect dataset that somebody published, and a stranger's empty machine that uses it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from builders import tiny
from builders.quick_python import online_python
from builders.student_files import student_files
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets, load_dataset
from huggingface_hub import DatasetCard

from madkd_hf import Aspect, AspectBank, AspectTeacher, attach_aspects, push_aspect_dataset
from madkd_hf.cli.label import LabelArguments, publish
from madkd_hf.hub import dataset as hub_dataset
from madkd_hf.hub import retries
from madkd_hf.hub.retries import HubError


BANK = tiny.bank(3)
ID, REPO = "you/birds", ("you/birds", "dataset")


@pytest.fixture(scope="module")
def teacher():
    return AspectTeacher(tiny.internvl(), tiny.processor(), "full")


@pytest.fixture(scope="module")
def bank(teacher):
    teacher.prepare(tiny.images(2), BANK)
    source = {"id": "museum/birds", "config": None, "revision": None, "commit": None}
    return AspectBank(BANK.aspects, {**teacher.provenance, "dataset": source})


def save_photos(folder):
    """A folder of photographs: `datasets` keeps paths, no bytes."""
    for split, count in (("train", 6), ("test", 4)):
        for i, image in enumerate(tiny.images(count, 20, seed=count)):
            path = folder / split / ["finch", "heron"][i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
    return folder


def label(photos, teacher, tmp_path):
    dataset = load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(tmp_path / "cache"))
    return attach_aspects(dataset, BANK, teacher, splits=["train"], work_dir=tmp_path / "work")


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def labelled_once(teacher, tmp_path_factory):
    place = tmp_path_factory.mktemp("labelled")
    return label(save_photos(place / "photos"), teacher, place)


@pytest.fixture
def labelled(labelled_once):
    """For tests that leave the files of the dataset as they are."""
    return DatasetDict(labelled_once)


def parquet(hub, split):
    (content,) = (content for path, content in hub.files(*REPO).items() if path.startswith(f"data/{split}-"))
    return pq.read_table(io.BytesIO(content))


def child(hub, tmp_path, code):
    """What a fresh Python process prints."""
    env = hub.environment(hub.home)
    done = subprocess.run([online_python(hub), "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What is there


def test_one_commit_with_everything(hub, labelled, bank):
    pushed = push_aspect_dataset(labelled, bank, ID)
    assert set(hub.files(*REPO)) - {".gitattributes"} == {
        "README.md",
        "aspects.json",
        "data/train-00000-of-00001.parquet",
        "data/test-00000-of-00001.parquet",
        "figures/questions.png",
        "figures/teacher.png",
    }
    first, *before = hub.commits(*REPO)
    assert (first["oid"], len(before)) == (pushed.oid, 1)
    assert hub.repos()["dataset", ID].private
    assert push_aspect_dataset(labelled, bank, ID).oid == pushed.oid  # the same again commits nothing
    assert len(hub.commits(*REPO)) == 2


def test_a_fresh_process_reads_it_after_the_photographs_are_gone(hub, teacher, bank, photos, tmp_path):
    labelled = label(photos, teacher, tmp_path)
    pushed = push_aspect_dataset(labelled, bank, ID)
    expected = {
        split: [[row["label"], row["aspect_logits"], row["aspect_mass"], row["aspect_bank"]] for row in rows]
        for split, rows in labelled.items()
    }
    pixels = [np.asarray(image).sum().item() for image in labelled["train"]["image"]]
    for gone in ("photos", "cache", "work"):
        shutil.rmtree(tmp_path / gone)
    code = f"""
import json, numpy as np
from datasets import load_dataset
from madkd_hf import AspectBank
told = dict(columns={{}}, streamed={{}})
for kind, streaming in (("columns", False), ("streamed", True)):
    dataset = load_dataset("{ID}", streaming=streaming)
    for split, rows in dataset.items():
        columns = ["label", "aspect_logits", "aspect_mass", "aspect_bank"]
        told[kind][split] = [[row[name] for name in columns] for row in rows]
told["pixels"] = [np.asarray(row["image"]).sum().item() for row in dataset["train"]]
told["pinned"] = len(load_dataset("{ID}", revision="{pushed.oid}", split="train"))
told["names"] = load_dataset("{ID}", split="train").features["label"].names
told["feature"] = str(load_dataset("{ID}", split="train").features["aspect_logits"])
bank = AspectBank.load("{ID}", revision="{pushed.oid}")
told["bank"] = [bank.questions, bank.fingerprint, bank.provenance]
print(json.dumps(told))
"""
    told = json.loads(child(hub, tmp_path, code).splitlines()[-1])
    assert told["columns"] == told["streamed"] == expected
    assert told["pixels"] == pixels
    assert told["pinned"] == 6
    assert told["names"] == ["finch", "heron"]
    assert told["feature"] == "List(Value('float32'), length=3)"
    assert told["bank"] == [bank.questions, bank.fingerprint, bank.provenance]


@pytest.mark.parametrize("labels", ["numbered", "words"])
def test_the_card_s_snippet_trains(hub, labelled, bank, tmp_path, labels):
    if labels == "words":  # fewer in one split than in the other, and the first row was not answered
        words = [{"label": name} for name in ("finch", "heron")]
        labelled = labelled.cast_column("label", Value("string")).map(lambda row: words[int(row["label"])])
        labelled["test"] = labelled["test"].filter(lambda row: row["label"] == "heron")
        nothing = dict.fromkeys(("aspect_logits", "aspect_mass", "aspect_bank"))
        labelled["train"] = labelled["train"].map(lambda row, i: {} if i else nothing, with_indices=True)
    push_aspect_dataset(labelled, bank, ID)
    hub.add_repo("microsoft/resnet-18", student_files(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", card(hub).content, flags=re.DOTALL)
    printed = child(hub, tmp_path, code)
    assert "'train_loss'" in printed
    assert printed.startswith("{'aspect-0': ")


def test_many_files_and_then_few(hub, labelled, bank, monkeypatch):
    everything = {"train": concatenate_datasets([labelled["train"]] * 50)}
    with monkeypatch.context() as patched:
        patched.setattr(hub_dataset, "SHARD_BYTES", 200_000)
        push_aspect_dataset(everything, bank, ID)
    files = [name for name in hub.files(*REPO) if name.endswith("parquet")]
    assert files == [f"data/train-0000{i}-of-00002.parquet" for i in range(2)]
    push_aspect_dataset(labelled, bank, ID)
    assert sum(name.endswith("parquet") for name in hub.files(*REPO)) == 2
    assert len(hub.commits(*REPO)) == 3


def test_a_stream_is_published_like_rows(hub, labelled, bank, teacher, photos, tmp_path):
    push_aspect_dataset(labelled, bank, ID)
    rows = {split: parquet(hub, split) for split in ("train", "test")}
    dataset = load_dataset("imagefolder", data_dir=str(photos), streaming=True)
    stream = attach_aspects(dataset, BANK, teacher, splits=["train"], work_dir=tmp_path / "stream")
    push_aspect_dataset(stream, bank, ID)
    for split, table in rows.items():
        assert parquet(hub, split).sort_by("label").drop(["image"]) == table.sort_by("label").drop(["image"])


def test_an_empty_split_and_rows_that_were_skipped(hub, bank, teacher, tmp_path):
    features = Features({"image": Image(), "label": Value("string")})
    images = [*tiny.images(4), {"bytes": b"broken", "path": None}]
    rows = Dataset.from_dict({"image": images, "label": list("abab") + [None]}, features=features)
    dataset = DatasetDict({"train": rows, "empty": rows.select([])})
    labelled = attach_aspects(dataset, BANK, teacher, splits=["train"], on_error="skip", work_dir=tmp_path / "work")
    push_aspect_dataset(labelled.cast_column("image", Image(decode=False)), bank, ID)
    assert parquet(hub, "train")["aspect_logits"].null_count == 1
    code = f"import datasets; rows = datasets.load_dataset('{ID}'); print(rows.num_rows, rows['train'].features)"
    printed = child(hub, tmp_path, code)
    assert printed.startswith("{'train': 5}")
    assert "Image(mode=None, decode=True)" in printed  # whatever the publisher preferred


def test_one_split_without_classes(hub, labelled, bank):
    push_aspect_dataset(labelled["train"].remove_columns("label"), bank, ID)
    assert "figures/teacher.png" not in hub.files(*REPO)
    content = card(hub).content
    assert "teacher.png" not in content
    assert "MadkdTrainer" not in content


# The card


def card(hub):
    return DatasetCard(hub.files(*REPO)["README.md"].decode())


def test_the_card_tells_who_answered_what(hub, labelled, bank):
    push_aspect_dataset(labelled, bank, ID, license="cc-by-4.0")
    data = card(hub).data
    assert (data.license, data.task_categories, data.size_categories) == (
        "cc-by-4.0",
        ["image-classification"],
        ["n<1K"],
    )
    assert "madkd" in data.tags
    assert [entry["split"] for entry in data.configs[0]["data_files"]] == ["train", "test"]
    sizes = {split["name"]: split["num_examples"] for split in data.dataset_info["splits"]}
    assert sizes == {"train": 6, "test": 4}
    assert data.dataset_info["download_size"] == sum(
        len(content) for name, content in hub.files(*REPO).items() if name.startswith("data/")
    )
    push_aspect_dataset(labelled, bank, "you/without")
    content = hub.files("you/without", "dataset")["README.md"].decode()
    for question in bank.questions:
        assert f"| {question} |" in re.sub(" +", " ", content)
    for value in ("float32", bank.provenance["weights"], bank.fingerprint, "`museum/birds`", "arXiv 2501.13341"):
        assert value in content
    assert re.search(r"\| train +\| +6 \| +6 \|", content)
    assert re.search(r"\| test +\| +4 \| +0 \|", content)
    assert "![What each question tells](figures/questions.png)" in content
    assert "No licence is stated here" in content


def test_strange_words_do_not_break_the_card(hub, photos, teacher):
    strange = AspectBank(
        [Aspect("a|b", "Is it <b>bold</b> | {{ card_data }}\n---\n?"), *BANK.aspects[1:]],
        {**teacher.provenance, "model": "../../home/somebody/secret/teacher", "prompt": "```{question} | {% raw %}"},
    )
    rows = attach_aspects(load_dataset("imagefolder", data_dir=str(photos), split="train"), strange, teacher)
    push_aspect_dataset(rows, strange, ID)
    content = card(hub).content
    assert "a\\|b" in content
    assert "{{ card_data }} --- ?" in content
    everything = b"".join(hub.files(*REPO).values())
    assert b"home/somebody" not in everything
    assert b"home/somebody" not in hub.received
    assert "`teacher`" in content


@pytest.fixture
def source(hub, bank):
    """A dataset with a licence, as the one that the images are from."""
    commit = hub.add_repo("museum/birds", {"README.md": b"---\nlicense: cc-by-sa-4.0\nlanguage: en\n---\n"}, "dataset")
    named = {"id": "museum/birds", "config": None, "revision": None, "commit": commit}
    return AspectBank(bank.aspects, {**bank.provenance, "dataset": named})


def test_the_licence_of_the_source_is_carried_over(hub, labelled, source, monkeypatch):
    monkeypatch.setattr(retries, "_pause", lambda state: 0)
    hub.fault("museum/birds/resolve", "status", status=503, times=3)
    push_aspect_dataset(labelled, source, ID)
    assert (card(hub).data.license, card(hub).data.language) == ("cc-by-sa-4.0", "en")
    assert "[museum/birds]" in card(hub).content


def test_a_licence_that_cannot_be_read_is_not_lost_in_silence(hub, labelled, source):
    hub.fault("museum/birds/resolve", "status", status=403, times=None)
    with pytest.raises(HubError, match="Cannot read in the card of museum/birds under which licence .*pass a license"):
        push_aspect_dataset(labelled, source, ID)
    push_aspect_dataset(labelled, source, ID, license="mit")
    assert card(hub).data.license == "mit"


def test_a_licence_that_the_hub_does_not_know_is_named(hub, labelled, source):
    commit = hub.add_repo("museum/birds", {"README.md": b"---\nlicense: ask the museum\n---\n"}, "dataset")
    source.provenance["dataset"]["commit"] = commit
    push_aspect_dataset(labelled, source, ID)
    assert (card(hub).data.license, card(hub).data.license_name) == ("other", "ask the museum")


def test_what_a_person_added_to_the_card_stays(hub, labelled, bank):
    by_hand = b"---\nlicense: cc-by-nc-4.0\nextra_gated_prompt: Be kind.\n---\n# Birds\n"
    hub.add_repo(ID, {"README.md": by_hand}, "dataset")
    push_aspect_dataset(labelled, bank, ID)
    assert card(hub).data.license == "cc-by-nc-4.0"
    assert card(hub).data.to_dict()["extra_gated_prompt"] == "Be kind."
    assert "`cc-by-nc-4.0`" in card(hub).content


def test_a_slice_is_published_under_the_name_of_its_split(hub, labelled, bank, tmp_path):
    push_aspect_dataset(labelled, bank, ID)
    child(hub, tmp_path, SLICE)
    assert set(hub.files("you/slice", "dataset")) >= {"data/train-00000-of-00001.parquet"}
    assert "[you/birds]" in hub.files("you/slice", "dataset")["README.md"].decode()


SLICE = f"""
from datasets import load_dataset
from madkd_hf import AspectBank, push_aspect_dataset
bank = AspectBank.load("{ID}")
bank.provenance.pop("dataset")
push_aspect_dataset(load_dataset("{ID}", split="train[:4]"), bank, "slice")
"""


# What is refused, and what fails


def test_what_could_not_be_loaded_is_not_published(hub, labelled, bank):
    train, test = labelled["train"], labelled["test"]
    for dataset, message in [
        ({"a-b": train}, "'a-b' cannot be the name of a split on the Hub: use letters"),
        ({"all": train}, "'all' cannot be the name"),
        ({}, "has no splits"),
        ({"train": train.rename_column("image", "photo")}, "no column 'image'.*pass image_column"),
        ({"train": train, "test": test.remove_columns("label")}, "'train' and 'test' have other columns"),
        (train.select([]), "The dataset has no rows"),
        (test, "No image has an answer"),
    ]:
        with pytest.raises(ValueError, match=message):
            push_aspect_dataset(dataset, bank, ID)
    with pytest.raises(ValueError, match="no column 'klass' of classes.*pass label_column"):
        push_aspect_dataset(labelled, bank, ID, label_column="klass")
    assert ("dataset", ID) not in hub.repos()


def test_other_datasets_and_banks_are_refused_before_anything_is_sent(hub, labelled, bank, photos):
    plain = load_dataset("imagefolder", data_dir=str(photos))
    with pytest.raises(ValueError, match="no column 'aspect_logits'.*label the dataset with attach_aspects"):
        push_aspect_dataset(plain, bank, ID)
    with pytest.raises(ValueError, match="labelled with the bank .* and this one is .*use the aspects.json beside"):
        push_aspect_dataset(labelled, tiny.bank(2), ID)
    assert not hub.requests


def test_a_photograph_that_is_gone(hub, teacher, bank, photos, tmp_path):
    labelled = label(photos, teacher, tmp_path)
    shutil.rmtree(photos)
    with pytest.raises(ValueError, match="row 0 of split .*0.png.*there is no such file.*drop the row") as raised:
        push_aspect_dataset(labelled, bank, ID)
    assert "on_error" not in str(raised.value)  # which publishing does not have
    args = LabelArguments(hub_dataset_id=ID, output_dir=str(tmp_path / "out"))
    with pytest.raises(OSError, match="0.png.*nothing was sent, the labelled dataset there is complete"):
        publish(args, labelled, bank)


def test_a_failure_leaves_the_old_dataset_and_no_scratch(hub, labelled, bank, tmp_path):
    push_aspect_dataset(labelled, bank, ID)
    before = hub.files(*REPO)
    hub.fault("POST .*/commit/", "status", status=403, times=None)
    with pytest.raises(HubError, match="403"):
        push_aspect_dataset({"train": labelled["train"]}, bank, ID, work_dir=tmp_path)
    assert hub.files(*REPO) == before
    assert not list(tmp_path.glob(".publish*"))


def test_no_byte_of_the_token_is_sent_in_a_file(hub, labelled, source):
    push_aspect_dataset(labelled, source, ID, token=f"{hub.token}\n")
    assert card(hub).data.license == "cc-by-sa-4.0"
    assert hub.token.encode() not in hub.received
    assert hub.token.encode() not in b"".join(hub.files(*REPO).values())


# The command


@pytest.fixture
def museum(hub, photos, tmp_path):
    """A dataset with a licence, and a teacher, as others have put them on the Hub."""
    (photos / "README.md").write_text("---\nlicense: cc-by-4.0\nlanguage: en\n---\n# Birds of the museum\n")
    tiny.internvl().save_pretrained(tmp_path / "teacher")
    tiny.processor().save_pretrained(tmp_path / "teacher")
    BANK.save(tmp_path / "aspects.json")
    return {
        "dataset": hub.add_repo("museum/birds", photos, "dataset"),
        "teacher": hub.add_repo("museum/teacher", tmp_path / "teacher"),
    }


def attach(hub, tmp_path, *words, **environment):
    """Runs the recipe in a child process."""
    recipe = Path(__file__).parents[2] / "recipes/attach_aspects.py"
    named = ["--dataset", "museum/birds", "--teacher", "museum/teacher", "--bank", "aspects.json"]
    named += ["--output_dir", "out", "--push_to_hub", "--hub_dataset_id", ID]
    return subprocess.run(
        [online_python(hub), str(recipe), *named, *words],
        env=hub.environment(hub.home) | environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )


def test_the_recipe_publishes_and_pins(hub, museum, tmp_path):
    done = attach(hub, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Published: {hub.url}/datasets/{ID}" in done.stdout
    data = card(hub).data
    assert (data.license, data.language, data.source_datasets) == ("cc-by-4.0", "en", ["museum/birds"])
    provenance = json.loads(hub.files(*REPO)["aspects.json"])["provenance"]
    assert provenance["dataset"]["commit"] == museum["dataset"]
    assert provenance["commit"] == museum["teacher"]
    assert museum["dataset"] in card(hub).content
    again = attach(hub, tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(hub.commits(*REPO)) == 2
    token = hub.token.encode()
    assert token not in hub.received
    assert hub.token not in done.stdout + done.stderr + again.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in written if token in path.read_bytes()] == []
    assert not list((tmp_path / "out").glob(".publish*"))


def test_what_cannot_be_published_is_told_before_the_labelling(hub, museum, tmp_path):
    done = attach(hub, tmp_path, HF_TOKEN="hf_wrong")
    assert done.returncode == 1
    assert re.fullmatch(r"error: The Hub does not accept the token .*", done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
