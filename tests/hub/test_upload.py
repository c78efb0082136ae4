"""What reaches the Hub: all of it or nothing, whatever happens on the way."""

from __future__ import annotations

import logging
import re
import socket
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from madkd_hf.hub import retries
from madkd_hf.hub.retries import HubError
from madkd_hf.hub.upload import HubRepo


CARD = "---\ntags:\n- madkd\n---\n# Birds\n"
OURS = ("README.md", "data/*.parquet")
COMMIT, WRITES = "POST .*/commit/", "POST .*(/commit/|/repos/create)"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "files/data").mkdir(parents=True)
    (tmp_path / "files/README.md").write_text(CARD)
    (tmp_path / "files/data/train-00000.parquet").write_bytes(b"images " * 1000)
    return tmp_path / "files"


@pytest.fixture
def pauses(monkeypatch):
    """Seconds that would have been waited."""
    waited, pause = [], retries._pause
    monkeypatch.setattr(retries, "_pause", lambda state: waited.append(pause(state)) or 0)
    return waited


@pytest.fixture
def birds(hub, pauses):
    return HubRepo("you/birds", "dataset")


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_the_hub(hub, revision="main"):
    files = hub.files("you/birds", "dataset", revision)
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def commits(hub):
    return len(hub.commits("you/birds", "dataset")) - 1  # without the first, which makes the repo


def asked(hub, pattern):
    return sum(re.search(pattern, f"{request.method} {request.path}") is not None for request in hub.requests)


def test_a_folder_becomes_one_commit_in_a_private_repo(hub, birds, folder):
    pushed = birds.check().push(folder, "Birds", OURS)
    assert on_the_hub(hub) == content(folder)
    assert hub.commits("you/birds", "dataset")[0] == {"oid": pushed.oid, "title": "Birds", "author": "you"}
    assert commits(hub) == 1
    assert hub.repos()["dataset", "you/birds"].private


def test_public_when_asked_and_a_name_alone_is_the_user_s(hub, birds, folder):
    assert HubRepo("birds", "dataset").check() == birds
    HubRepo("you/birds", "dataset", private=False).push(folder, "Birds", OURS)
    assert not hub.repos()["dataset", "you/birds"].private


def test_the_same_again_commits_nothing(hub, birds, folder):
    first = birds.push(folder, "Birds", OURS)
    assert birds.check().push(folder, "Birds", OURS).oid == first.oid
    assert commits(hub) == 1


def test_stale_files_of_ours_go_in_the_same_commit_and_others_stay(hub, birds, folder):
    hub.add_repo(
        "you/birds", {"README.md": CARD.encode(), "data/train-00001.parquet": b"old", "NOTES": b"mine"}, "dataset"
    )
    birds.check().push(folder, "Birds", OURS)
    assert on_the_hub(hub) == {**content(folder), "NOTES": b"mine"}
    assert commits(hub) == 1


@pytest.mark.parametrize(
    ("call", "fault"),
    [("GET .*/whoami", "500"), ("POST .*/repos/create", "drop_after"), ("GET /api/datasets/you/birds", "503")]
    + [(COMMIT, fault) for fault in ("429", "412", "drop", "drop_after")],
)
def test_what_passes_is_tried_again(hub, birds, folder, pauses, call, fault):
    kind, options = ("status", {"status": int(fault)}) if fault.isdigit() else (fault, {})
    hub.fault(call, kind, times=2, **options)
    birds.check().push(folder, "Birds", OURS)
    assert on_the_hub(hub) == content(folder)
    assert commits(hub) == 1
    assert len(pauses) == (1 if fault == "drop_after" and call == COMMIT else 2)


def test_the_hub_says_how_long_to_wait(hub, birds, folder, pauses):
    hub.fault(COMMIT, "status", status=429, retry_after=7)
    hub.fault("POST .*/repos/create", "status", status=429, retry_after=10**6)
    birds.push(folder, "Birds", OURS)
    assert pauses == [retries.LONGEST_WAIT, 7]


def test_what_will_not_pass_is_not(hub, birds, folder, pauses):
    for status in (401, 403, 404):
        hub.fault(WRITES, "status", status=status)
        before = asked(hub, WRITES)
        with pytest.raises(HubError, match=str(status) if status != 404 else "you/birds"):
            birds.push(folder, "Birds", OURS)
        assert asked(hub, WRITES) == before + 1
    assert not pauses


def test_a_failed_push_leaves_the_old_state_and_is_repeated_by_the_same_call(hub, birds, folder, pauses):
    birds.push(folder, "Birds", OURS)
    before = on_the_hub(hub)
    (folder / "README.md").write_text(CARD + "new")
    (folder / "data/train-00000.parquet").rename(folder / "data/train-00001.parquet")
    hub.fault(COMMIT, "status", status=500, times=None)
    with pytest.raises(HubError, match="refused to publish the dataset you/birds .*500.*the same command goes on"):
        birds.push(folder, "Birds", OURS)
    assert (on_the_hub(hub), commits(hub), asked(hub, COMMIT)) == (before, 1, 1 + retries.ATTEMPTS)
    hub.clear_faults()
    birds.push(folder, "Birds", OURS)
    assert (on_the_hub(hub), commits(hub)) == (content(folder), 2)


def test_a_cut_upload_is_sent_again_and_what_is_up_is_not(hub, birds, folder):
    hub.fault("PUT .*", "cut")
    hub.fault(COMMIT, "status", status=403)
    with pytest.raises(HubError):
        birds.push(folder, "Birds", OURS)
    sent = asked(hub, "PUT")
    birds.push(folder, "Birds", OURS)
    assert asked(hub, "PUT") == sent == 2
    assert on_the_hub(hub) == content(folder)


def test_a_branch_of_its_own(hub, birds, folder):
    birds.push(folder, "Birds", OURS)
    before = on_the_hub(hub)
    (folder / "README.md").write_text(CARD + "new")
    HubRepo("you/birds", "dataset", revision="next").check().push(folder, "Next", OURS)
    HubRepo("you/birds", "dataset", revision="next").check().push(folder, "Next", OURS)
    assert on_the_hub(hub) == before
    assert on_the_hub(hub, "next") == content(folder)


def test_one_pull_request(hub, folder):
    hub.add_repo("you/birds", {"README.md": b"# Birds", "birds.csv": b"1"}, "dataset")
    pushed = HubRepo("you/birds", "dataset", create_pr=True).check().push(folder, "Birds", OURS)
    assert on_the_hub(hub) == {"README.md": b"# Birds", "birds.csv": b"1"}
    assert pushed.pr_url.endswith("/datasets/you/birds/discussions/1")
    assert on_the_hub(hub, pushed.pr_revision) == {**content(folder), "birds.csv": b"1"}
    assert set(hub.repos()["dataset", "you/birds"].refs) == {"refs/heads/main", "refs/pr/1"}


@pytest.mark.parametrize("fault", ["drop", "drop_after"])
def test_a_pull_request_without_an_answer_is_not_opened_twice(hub, folder, pauses, fault):
    hub.add_repo("you/birds", {"README.md": b"# Birds", "birds.csv": b"1"}, "dataset")
    hub.fault(COMMIT, fault)
    repo = HubRepo("you/birds", "dataset", create_pr=True).check()
    with pytest.raises(HubError, match=f"look under {hub.url}/datasets/you/birds/discussions"):
        repo.push(folder, "Birds", OURS)
    assert on_the_hub(hub) == {"README.md": b"# Birds", "birds.csv": b"1"}
    opened = {"refs/pr/1"} if fault == "drop_after" else set()
    assert set(hub.repos()["dataset", "you/birds"].refs) == {"refs/heads/main"} | opened
    assert asked(hub, COMMIT) == 1


def test_a_pull_request_needs_a_repo(hub, pauses):
    with pytest.raises(HubError, match="no dataset you/birds to open a pull request on"):
        HubRepo("you/birds", "dataset", create_pr=True).check()


def test_a_taken_name_is_not_overwritten(hub, birds, folder):
    files = {"README.md": b"# Mine", "birds.csv": b"1"}
    hub.add_repo("you/birds", files, "dataset")
    for step in (birds.check, lambda: birds.push(folder, "Birds", OURS)):  # it may be taken meanwhile
        with pytest.raises(HubError, match="The name you/birds is taken: that dataset holds birds.csv .*another name"):
            step()
    assert on_the_hub(hub) == files


def test_a_repo_made_by_hand_is_not_taken(hub, birds):
    hub.add_repo("you/birds", {"README.md": b"# Birds to come", "LICENSE": b""}, "dataset")
    assert birds.check() == birds


def test_somebody_else_s_name(hub, pauses):
    with pytest.raises(HubError, match="you may not write to somebody/birds: pass a name under one of you, birders"):
        HubRepo("somebody/birds", "dataset").check()
    assert HubRepo("birders/birds", "dataset").check()


def test_a_token_that_will_not_do(hub, pauses, monkeypatch):
    for token, message in [
        ("hf_wrong", "does not accept the token .401.*hf auth login"),
        ("hf_readonlytokenofyou", "The token of you may only read: make one that may write"),
    ]:
        with pytest.raises(HubError, match=message):
            HubRepo("you/birds", "dataset", token=token).check()
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match=message):
            HubRepo("you/birds", "dataset").check()
    assert not pauses


def test_no_token_no_name_and_offline(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(HubError, match="without a token: run `hf auth login`, or set HF_TOKEN"):
        HubRepo("you/birds", "dataset").check()
    with pytest.raises(HubError, match="'you/my birds' is no name for a repo"):
        HubRepo("you/my birds", "dataset").check()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE=1 is set; unset it"):
        HubRepo("you/birds", "dataset").check()
    assert not hub.requests


def test_no_hub_there(hub, pauses, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(HubError, match="The Hub at http://127.0.0.1:.* cannot be reached"):
            HubRepo("you/birds", "dataset").check()
    assert len(pauses) == retries.ATTEMPTS_BEFORE


def test_the_card_s_mistakes_are_told(hub, birds, folder):
    (folder / "README.md").write_text("---\nlicense: made-up-by-me\n---\n")
    with pytest.raises(HubError, match="license"):
        birds.push(folder, "Birds", OURS)
    assert not on_the_hub(hub)


def test_the_token_is_told_to_nobody(hub, birds, folder, caplog):
    caplog.set_level(logging.DEBUG)
    hub.fault(COMMIT, "status", status=503, message=f"cannot talk to {hub.token}", times=2)
    birds.push(folder, "Birds", OURS)
    hub.fault(COMMIT, "status", status=403, message=f"no rights for {hub.token}")
    (folder / "README.md").write_text(CARD + "new")
    with pytest.raises(HubError) as told:
        birds.push(folder, "Birds", OURS)
    assert hub.token.encode() not in hub.received
    assert "***" in str(told.value)
    assert hub.token not in f"{told.value!r} {caplog.text}"
    assert hub.token not in repr(HubRepo("you/birds", "dataset", token=hub.token))


# What a token, a name or a place may do


def test_the_end_of_line_of_a_token_file_is_not_part_of_the_token(hub, folder, pauses, caplog):
    HubRepo("you/birds", "dataset", token=f"{hub.token}\n").push(folder, "Birds", OURS)
    assert commits(hub) == 1
    with pytest.raises(HubError) as told:
        HubRepo("you/birds", "dataset", token=f"{hub.token}\nand more").check()
    assert hub.token not in str(told.value) + caplog.text


def test_rights_are_known_before_the_work(hub, monkeypatch):
    def of_the_token(**rights):
        monkeypatch.setitem(hub.users, hub.token, {"name": "you", **rights})

    of_the_token(role="write", orgs={"birders": "read"})
    with pytest.raises(HubError, match="you may not write to birders/birds: pass a name under one of you,"):
        HubRepo("birders/birds", "dataset").check()
    scope = {"entity": {"type": "user", "name": "you"}, "permissions": ["repo.content.read"]}
    of_the_token(role="fineGrained", scopes=[scope])
    with pytest.raises(HubError, match="fine-grained token of you may write to no repo"):
        HubRepo("you/birds", "dataset").check()
    of_the_token(role="fineGrained", scopes=[scope | {"permissions": ["repo.write"]}])
    assert HubRepo("you/birds", "dataset").check()


def test_a_licence_that_the_hub_does_not_know(birds):
    assert birds.check("cc-by-4.0") == birds
    with pytest.raises(HubError, match="knows no licence 'MIT': pass one of its identifiers, such as apache-2.0"):
        birds.check("MIT")


def test_places_that_are_no_branch(hub, birds, folder):
    commit = birds.push(folder, "Birds", OURS).oid
    with pytest.raises(HubError, match="is no branch to commit to: pass the name of a branch"):
        HubRepo("you/birds", "dataset", revision=commit).check()
    with pytest.raises(HubError, match="A pull request is opened on main and revision='next' names another place"):
        HubRepo("you/birds", "dataset", revision="next", create_pr=True).check()


def test_a_pull_request_of_one_s_own_is_updated(hub, folder):
    hub.add_repo("you/birds", {"README.md": b"# Birds"}, "dataset")
    made = HubRepo("you/birds", "dataset", create_pr=True).push(folder, "Birds", OURS)
    (folder / "README.md").write_text(CARD + "better")
    HubRepo("you/birds", "dataset", revision=made.pr_revision).push(folder, "Better", OURS)
    assert on_the_hub(hub, "refs/pr/1") == content(folder)
    assert set(hub.repos()["dataset", "you/birds"].refs) == {"refs/heads/main", "refs/pr/1"}


def test_nothing_to_propose(hub, birds, folder):
    birds.push(folder, "Birds", OURS)
    with pytest.raises(HubError, match="nothing to propose: you/birds holds these very files already"):
        HubRepo("you/birds", "dataset", create_pr=True).push(folder, "Birds", OURS)


def test_files_in_folders_of_ours_that_others_put_there_stay(hub, birds, folder):
    others = {"data/extra/mine.parquet": b"1", "figures/banner.png": b"2"}
    hub.add_repo("you/birds", {"README.md": CARD.encode(), **others}, "dataset")
    birds.push(folder, "Birds", OURS)
    assert on_the_hub(hub) == {**content(folder), **others}


def test_what_a_person_added_to_the_card_is_known(hub, birds):
    assert birds.manual_metadata() == {}
    card = b"---\nlicense: cc-by-nc-4.0\nextra_gated_prompt: Be kind.\ntags: [madkd]\npretty_name: B\n---\n# Birds\n"
    hub.add_repo("you/birds", {"README.md": card}, "dataset")
    assert birds.manual_metadata() == {"license": "cc-by-nc-4.0", "extra_gated_prompt": "Be kind."}
    hub.add_repo("you/birds", {"README.md": b"---\n: [\n---\n"}, "dataset")
    assert birds.manual_metadata() == {}


def test_all_ways_to_say_how_long():
    for headers, least, most in [
        ({"RateLimit": '"api";r=0;t=55'}, 55, 57),
        ({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}, 7, 7),
        ({"Retry-After": "soon"}, 0, 4),
        ({}, 0, 4),
    ]:
        response = httpx2.Response(429, headers=headers, request=httpx2.Request("POST", "http://hub"))
        error = HfHubHTTPError("busy", response=response)
        state = SimpleNamespace(attempt_number=1, outcome=SimpleNamespace(exception=lambda error=error: error))
        assert least <= retries._pause(state) <= most, headers
