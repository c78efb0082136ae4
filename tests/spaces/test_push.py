"""A Space on the Hub: in one commit, with what runs it, and nothing of a token."""

from __future__ import annotations

import pytest
from builders.space_students import make_space, save_student
from huggingface_hub import RepoCard

from madkd_hf.hub.retries import HubError
from madkd_hf.hub.upload import HubRepo
from madkd_hf.spaces import GRADIO, ONNX, PAGES, STATIC
from madkd_hf.spaces.card import SpaceFacts
from madkd_hf.spaces.space import push_space


FACTS = SpaceFacts("Birds", ["you/birds"], license="mit")


def push(student, folder, kind: str, name: str = "you/birds-space"):
    model = make_space(student, folder, kind, FACTS)
    return push_space(folder, kind, model, FACTS, HubRepo(name, "space", space_sdk=kind))


def test_it_is_one_commit_and_the_same_again_is_none(exported, tmp_path, hub):
    push(exported, tmp_path, STATIC)
    repo = hub.repos()["space", "you/birds-space"]
    assert repo.sdk == "static" and repo.private
    files = hub.files("you/birds-space", "space")
    assert {"README.md", "space.json", ONNX, *PAGES[STATIC]} <= files.keys() and ".madkd.json" not in files
    assert files[ONNX] == (tmp_path / ONNX).read_bytes()
    card = RepoCard(files["README.md"].decode())
    assert card.data.sdk == "static" and card.data.models == ["you/birds"] and card.data.license == "mit"
    push(exported, tmp_path, STATIC)
    assert len(hub.commits("you/birds-space", "space")) == 2  # the first one made the repo
    assert (
        not any(hub.token.encode() in content for content in files.values()) and hub.token.encode() not in hub.received
    )


def test_another_kind_takes_its_place_and_what_a_person_wrote_stays(exported, tmp_path, hub):
    push(exported, tmp_path, GRADIO)
    files = hub.files("you/birds-space", "space")
    card = (
        files["README.md"]
        .decode()
        .replace("emoji: 🔎", "emoji: 🐦\npinned: true")
        .replace("title: Birds", "title: Mine")
    )
    hub.add_repo("you/birds-space", {**files, "README.md": card.encode(), "notes.md": b"mine"}, "space")
    push(exported, tmp_path, STATIC)
    files = hub.files("you/birds-space", "space")
    assert "index.html" in files and "app.py" not in files and files["notes.md"] == b"mine"
    data = RepoCard(files["README.md"].decode()).data
    assert (data.emoji, data.pinned, data.title, data.sdk) == (
        "🐦",
        True,
        "Mine",
        "static",
    ) and "sdk_version" not in data


def test_a_space_of_somebody_is_not_overwritten(exported, tmp_path, hub):
    hub.add_repo("you/birds-space", {"README.md": b"---\nsdk: gradio\n---\n", "app.py": b"mine"}, "space")
    with pytest.raises(
        HubError, match="you/birds-space is taken: that space holds app.py and does not come from here"
    ):
        push(exported, tmp_path, STATIC)
    assert hub.files("you/birds-space", "space")["app.py"] == b"mine"


def test_an_export_that_anybody_may_read_stays_on_the_hub(exported, tmp_path, hub):
    commit = hub.add_repo("you/birds", exported)
    model = make_space("you/birds", tmp_path, STATIC, FACTS)
    assert model.hub == ("you/birds", commit) and not (tmp_path / ONNX).exists()
    assert model.input == {
        "bytes": (exported / "onnx/model.onnx").stat().st_size,
        "host": hub.url,
        "id": "you/birds",
        "commit": commit,
    }
    assert f"connect-src 'self' https://cdn.jsdelivr.net {hub.url} " in (tmp_path / "index.html").read_text("utf-8")
    hub.add_repo("you/private", exported, private=True)
    assert make_space("you/private", tmp_path, STATIC, FACTS).hub is None and (tmp_path / ONNX).exists()


@pytest.mark.slow
def test_a_student_on_the_hub_that_is_not_exported_is_brought_along(tmp_path, hub):
    hub.add_repo("you/finches", save_student(tmp_path / "student", ["finch", "heron"], None))
    model = make_space("you/finches", tmp_path / "space", GRADIO, FACTS)
    assert model.hub is None and model.classes == ["finch", "heron"] and (tmp_path / "space" / ONNX).exists()
