import hashlib
import http.client
import json
import subprocess
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from builders.local_hub import OWN_TOKEN, LocalHub
from builders.quick_python import quick_python


RAISES = """
def raises(error, function, *arguments, **options):
    try:
        function(*arguments, **options)
    except error as raised:
        return str(raised)
    raise AssertionError(f"no {error.__name__}")
"""


@pytest.fixture
def hub():
    with LocalHub() as hub:
        yield hub


def run(hub, home, script, token=OWN_TOKEN):
    """The script in a process of its own, with the real clients: what it asserts holds."""
    child = subprocess.run(
        [quick_python(), "-c", RAISES + textwrap.dedent(script)],
        env=hub.environment(home, token),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


def ask(hub, method, path, body=None, token=OWN_TOKEN, **headers):
    """One request without a client: (status, headers, body)."""
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    if token is not None:
        headers["Authorization"] = f"Bearer {hub.token if token == OWN_TOKEN else token}"
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    try:
        connection.request(method, path, body=body, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def commit(*operations, **header):
    lines = [{"key": "header", "value": {"summary": "a commit", **header}}, *operations]
    return "\n".join(json.dumps(line) for line in lines)


def file(path, content="text"):
    return {"key": "file", "value": {"path": path, "content": content, "encoding": "utf-8"}}


def test_huggingface_hub(hub, tmp_path):
    script = """
        import os
        from pathlib import Path
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

        api = HfApi()
        who = api.whoami()
        assert who["name"] == "you" and [each["name"] for each in who["orgs"]] == ["birders"]
        assert who["auth"]["accessToken"]["role"] == "write"

        assert api.create_repo("you/m", private=True).repo_id == "you/m"
        assert "You already created this model repo" in raises(errors.HfHubHTTPError, api.create_repo, "you/m")
        assert api.create_repo("you/m", exist_ok=True).repo_id == "you/m"
        first = api.repo_info("you/m").sha
        card = b"---\\nlicense: mit\\ntags:\\n- birds\\n---\\n# A model"
        add = [
            CommitOperationAdd("README.md", card),
            CommitOperationAdd("model.safetensors", b"x" * 1000),
            CommitOperationAdd("nested/notes.txt", b"hello"),
        ]
        made = api.create_commit("you/m", add, commit_message="a commit", parent_commit=first)
        assert api.model_info("you/m").sha == made.oid
        message = raises(
            errors.HfHubHTTPError, api.create_commit, "you/m", [CommitOperationAdd("late", b"x")],
            commit_message="late", parent_commit=first,
        )
        assert "412" in message and "A commit has happened since" in message, message
        wrong = [CommitOperationAdd("README.md", b"---\\nlicense: beerware\\n---\\n")]
        assert '"license" must be one of' in raises(ValueError, api.create_commit, "you/m", wrong, commit_message="x")

        folder = Path(os.environ["HF_HOME"], "folder")
        (folder / "deep").mkdir(parents=True)
        (folder / "deep/weights.bin").write_bytes(bytes(range(256)) * 40)
        (folder / "text.txt").write_text("héllo", encoding="utf-8")
        api.upload_folder(repo_id="you/m", folder_path=folder, path_in_repo="up", delete_patterns="*.old")
        api.upload_folder(repo_id="you/m", folder_path=folder, path_in_repo="up")  # nothing new: no commit
        assert [each.title for each in api.list_repo_commits("you/m")][1:] == ["a commit", "initial commit"]

        assert Path(api.hf_hub_download("you/m", "nested/notes.txt")).read_text() == "hello"
        snapshot = Path(api.snapshot_download("you/m", revision=made.oid))
        assert (snapshot / "model.safetensors").read_bytes() == b"x" * 1000 and not (snapshot / "up").exists()
        assert (Path(api.snapshot_download("you/m")) / "up/deep/weights.bin").stat().st_size == 10240
        top = {each.path for each in api.list_repo_tree("you/m")}
        assert top == {".gitattributes", "README.md", "model.safetensors", "nested", "up"}
        tree = {each.path: each for each in api.list_repo_tree("you/m", recursive=True, expand=True)}
        assert tree["model.safetensors"].lfs.size == 1000 and tree["up/text.txt"].lfs is None
        assert tree["nested/notes.txt"].last_commit.title == "a commit"
        assert [each.path for each in api.list_repo_tree("you/m", "up/deep")] == ["up/deep/weights.bin"]
        assert [each.path for each in api.get_paths_info("you/m", ["nested", "README.md", "no"])] == [
            "nested", "README.md"
        ]
        assert api.file_exists("you/m", "README.md") and not api.file_exists("you/m", "no.md")
        info = api.model_info("you/m", files_metadata=True)
        assert info.private and info.card_data.license == "mit" and "license:mit" in info.tags
        assert {each.rfilename: each.size for each in info.siblings}["model.safetensors"] == 1000

        api.create_branch("you/m", branch="v1", revision=first)
        assert api.list_repo_files("you/m", revision="v1") == [".gitattributes"]
        api.upload_file(path_or_fileobj=b"1", path_in_repo="v", repo_id="you/m", revision="v1")
        assert not api.file_exists("you/m", "v") and api.file_exists("you/m", "v", revision="v1")
        assert {each.name for each in api.list_repo_refs("you/m").branches} == {"main", "v1"}
        change = [CommitOperationDelete("up/"), CommitOperationAdd("pr.txt", b"pr")]
        pr = api.create_commit("you/m", change, commit_message="a proposal", create_pr=True)
        assert pr.pr_revision == "refs/pr/1" and not api.file_exists("you/m", "pr.txt")
        assert Path(api.hf_hub_download("you/m", "pr.txt", revision="refs/pr/1")).read_text() == "pr"
        assert not any(path.startswith("up/") for path in api.list_repo_files("you/m", revision="refs/pr/1"))
        assert [(each.num, each.title) for each in api.get_repo_discussions("you/m")] == [(1, "a proposal")]
        assert [each.ref for each in api.list_repo_refs("you/m", include_pull_requests=True).pull_requests] == [
            "refs/pr/1"
        ]
    """
    run(hub, tmp_path, script)
    assert hub.repos().keys() == {("model", "you/m")}
    assert hub.repos()["model", "you/m"].private is True
    assert hub.files("you/m")["up/text.txt"] == "héllo".encode()
    assert hub.commits("you/m", revision="refs/pr/1")[0]["title"] == "a proposal"
    assert hub.commits("you/m", revision="v1")[0]["author"] == "you"
    assert "héllo".encode() in hub.received and b"x" * 1000 in hub.received
    assert hub.token.encode() not in hub.received
    assert not any(request.authorized for request in hub.requests if request.path.startswith("/lfs-storage/"))


def test_who_may_do_what(hub, tmp_path):
    hub.add_repo("you/m", {"README.md": b"# yours"}, private=True)
    hub.add_repo("somebody/public", {"README.md": b"# theirs"})
    script = """
        from huggingface_hub import HfApi, errors

        api = HfApi()
        assert "under the namespace" in raises(errors.HfHubHTTPError, api.create_repo, "somebody/m")
        theirs = dict(repo_id="somebody/public", path_or_fileobj=b"x", path_in_repo="x")
        assert "create_pr=1" in raises(errors.HfHubHTTPError, api.upload_file, **theirs)
        assert api.upload_file(**theirs, create_pr=True).pr_num == 1
        raises(errors.RepositoryNotFoundError, api.model_info, "you/nothing")
        raises(errors.RevisionNotFoundError, api.model_info, "you/m", revision="nothing")
        raises(errors.RemoteEntryNotFoundError, api.hf_hub_download, "you/m", "nothing")
        for token in ("hf_tokenofsomebodyelse", False):
            raises(errors.RepositoryNotFoundError, api.model_info, "you/m", token=token)
            raises(errors.RepositoryNotFoundError, api.hf_hub_download, "you/m", "README.md", token=token)
        reader = HfApi(token="hf_readonlytokenofyou")
        assert reader.model_info("you/m").private
        upload = dict(repo_id="you/m", path_or_fileobj=b"x", path_in_repo="x")
        assert "write token" in raises(errors.HfHubHTTPError, reader.upload_file, **upload)
        assert "401" in raises(errors.HfHubHTTPError, HfApi(token="hf_unknown").model_info, "somebody/public")
        assert "Invalid user token" in raises(errors.HfHubHTTPError, HfApi(token="hf_unknown").whoami)
        api.update_repo_settings("you/m", private=False)
        assert api.model_info("you/m", token=False).private is False
        api.create_repo("birders/gone")
        api.delete_repo("birders/gone")
        assert not api.repo_exists("birders/gone")
    """
    run(hub, tmp_path, script)
    assert hub.repos()["model", "you/m"].private is False and len(hub.commits("you/m")) == 1
    assert hub.repos().keys() == {("model", "you/m"), ("model", "somebody/public")}


def test_datasets(hub, tmp_path):
    script = """
        import datasets

        data = datasets.DatasetDict({
            "train": datasets.Dataset.from_dict({"id": [1, 2, 3], "name": ["tern", "gull", "auk"]}),
            "test": datasets.Dataset.from_dict({"id": [4], "name": ["skua"]}),
        })
        data.push_to_hub("you/x", private=True)
        loaded = datasets.load_dataset("you/x")
        assert {split: len(rows) for split, rows in loaded.items()} == {"train": 3, "test": 1}
        streamed = datasets.load_dataset("you/x", streaming=True)
        assert [row["name"] for row in streamed["train"]] == ["tern", "gull", "auk"]
        again = datasets.Dataset.from_dict({"id": [5], "name": ["puffin"]})
        again.push_to_hub("you/x", config_name="more", split="train")
        assert datasets.get_dataset_config_names("you/x") == ["default", "more"]
        assert datasets.load_dataset("you/x", "more", split="train")["name"] == ["puffin"]
    """
    run(hub, tmp_path, script)
    files = hub.files("you/x", "dataset")
    assert {"README.md", "data/train-00000-of-00001.parquet", "more/train-00000-of-00001.parquet"} <= files.keys()
    assert any(request.status == 206 for request in hub.requests)


def test_transformers(hub, tmp_path):
    script = """
        import torch
        from transformers import AutoConfig, AutoModelForImageClassification, ResNetConfig
        from transformers import ResNetForImageClassification

        config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], num_labels=3)
        model = ResNetForImageClassification(config)
        first = model.push_to_hub("you/tiny").oid
        with torch.no_grad():
            model.classifier[1].bias.fill_(7)
        model.push_to_hub("you/tiny")
        assert AutoConfig.from_pretrained("you/tiny").num_labels == 3
        old, new = (AutoModelForImageClassification.from_pretrained("you/tiny", revision=r) for r in (first, "main"))
        assert (new.classifier[1].bias == 7).all() and not (old.classifier[1].bias == 7).any()
        try:
            AutoConfig.from_pretrained("you/tiny", revision="nothing")
        except OSError as error:
            assert "nothing is not a valid git identifier" in str(error), error
        else:
            raise AssertionError
    """
    run(hub, tmp_path, script)
    assert len(hub.commits("you/tiny")) == 3


def test_faults_and_the_real_client(hub, tmp_path):
    hub.fault(r"POST .*/preupload/", "status", status=503, retry_after=0)
    hub.fault(r"PUT /lfs-storage/", "cut")
    hub.fault(r"GET .*/resolve/", "drop")
    script = """
        from huggingface_hub import CommitOperationAdd, HfApi

        api = HfApi()
        api.create_repo("you/m")
        api.create_commit("you/m", [CommitOperationAdd("a.bin", b"0123456789" * 100_000)], commit_message="retried")
        assert open(api.hf_hub_download("you/m", "a.bin"), "rb").read() == b"0123456789" * 100_000
    """
    run(hub, tmp_path, script)
    puts = [request for request in hub.requests if request.method == "PUT"]
    assert [(request.status, len(request.body)) for request in puts] == [(None, 500_000), (200, 1_000_000)]
    assert [request.status for request in hub.requests if "preupload" in request.path] == [503, 200]
    assert [each["title"] for each in hub.commits("you/m")] == ["retried", "initial commit"]


def test_what_each_fault_leaves_behind(hub):
    head = hub.add_repo("you/m", {"a.txt": b"a"})
    path, body = "/api/models/you/m/commit/main", commit(file("b.txt"))
    hub.fault("POST .*/commit/", "status", times=2, status=429, retry_after=7)
    for _ in range(2):
        status, headers, answer = ask(hub, "POST", path, body)
        assert (status, headers["Retry-After"]) == (429, "7") and "error" in json.loads(answer)
    for kind in ("drop", "cut"):
        hub.fault("POST .*/commit/", kind)
        with pytest.raises(ConnectionError):
            ask(hub, "POST", path, body)
    assert hub.commits("you/m")[0]["oid"] == head
    assert hub.requests[-1].status is None and len(hub.requests[-1].body) == len(body) // 2

    hub.fault("POST .*/commit/", "drop_after")
    with pytest.raises(ConnectionError):
        ask(hub, "POST", path, body)
    assert hub.files("you/m") == {"a.txt": b"a", "b.txt": b"text"}

    hub.fault("GET /api/models/you/m$", "slow", seconds=0.3)
    began = time.monotonic()
    assert ask(hub, "GET", "/api/models/you/m")[0] == 200 and time.monotonic() - began >= 0.3
    hub.fault(".", "status", times=None)
    assert [ask(hub, "GET", "/api/whoami-v2")[0] for _ in range(3)] == [503] * 3
    hub.clear_faults()
    assert ask(hub, "GET", "/api/whoami-v2")[0] == 200
    with pytest.raises(ValueError, match="fault"):
        hub.fault(".", "slow", second=1)


def test_resolve(hub):
    sha = hub.add_repo("you/m", {"w.bin": bytes(range(100)), "a b.txt": b"text"})
    status, headers, body = ask(hub, "HEAD", "/you/m/resolve/main/w.bin", token=None)
    assert (status, body, headers["Content-Length"], headers["X-Linked-Size"]) == (200, b"", "100", "100")
    assert headers["X-Repo-Commit"] == sha and headers["ETag"] == headers["X-Linked-Etag"]
    for asked, start, end in (("10-19", 10, 20), ("90-", 90, 100), ("-5", 95, 100), ("95-400", 95, 100)):
        status, headers, body = ask(hub, "GET", f"/you/m/resolve/{sha}/w.bin", Range=f"bytes={asked}")
        assert (status, body) == (206, bytes(range(start, end)))
        assert headers["Content-Range"] == f"bytes {start}-{end - 1}/100"
    status, headers, _ = ask(hub, "GET", f"/you/m/resolve/{sha}/w.bin", Range="bytes=100-")
    assert (status, headers["Content-Range"]) == (416, "bytes */100")
    oid = hashlib.sha1(b"blob 4\0text").hexdigest()
    status, headers, body = ask(hub, "GET", "/you/m/resolve/refs%2Fheads%2Fmain/a%20b.txt")
    assert (status, body, headers["ETag"]) == (200, b"text", f'"{oid}"')
    status, headers, _ = ask(hub, "HEAD", "/you/m/resolve/main/no")
    assert (status, headers["X-Error-Code"], headers["X-Repo-Commit"]) == (404, "EntryNotFound", sha)


def test_a_commit_is_all_or_nothing(hub):
    hub.add_repo("you/m", {"a.txt": b"a", "folder/b.txt": b"b"})
    missing = {"key": "lfsFile", "value": {"path": "w.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}}
    refused = [
        ([file("new.txt"), missing], 400),
        ([file("new.txt"), {"key": "deletedFile", "value": {"path": "no.txt"}}], 404),
        ([file("new.txt"), file("../up.txt")], 400),
        ([file("new.txt"), file("folder")], 400),
        ([file("new.txt"), file("README.md", "---\nmodel-index: [{name: x}]\n---\n")], 400),
        ([file("new.txt"), {"key": "nothing", "value": {}}], 400),
    ]
    for operations, status in refused:
        assert ask(hub, "POST", "/api/models/you/m/commit/main", commit(*operations))[0] == status, operations
    assert ask(hub, "POST", "/api/models/you/m/commit/nothing", commit(file("new.txt")))[0] == 404
    assert hub.files("you/m") == {"a.txt": b"a", "folder/b.txt": b"b"} and len(hub.commits("you/m")) == 1
    delete = {"key": "deletedFolder", "value": {"path": "folder/"}}
    assert ask(hub, "POST", "/api/models/you/m/commit/main", commit(delete))[0] == 200
    assert hub.files("you/m") == {"a.txt": b"a"}


def test_one_of_two_commits_on_the_same_parent(hub):
    head = hub.add_repo("you/m", {})
    bodies = [commit(file(f"{number}.txt"), parentCommit=head) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda body: ask(hub, "POST", "/api/models/you/m/commit/main", body)[0], bodies))
    assert sorted(statuses) == [200] + [412] * 7 and len(hub.files("you/m")) == 1


def test_lfs_refuses_other_content(hub):
    hub.add_repo("you/m", {})
    oid = "0" * 64
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 3}]}
    _, _, answer = ask(hub, "POST", "/you/m.git/info/lfs/objects/batch", batch)
    href = json.loads(answer)["objects"][0]["actions"]["upload"]["href"].removeprefix(hub.url)
    assert ask(hub, "PUT", href, b"abc", token=None)[0] == 400
    assert ask(hub, "PUT", href.split("?")[0], b"abc")[0] == 403
    verify = {"oid": oid, "size": 3}
    assert ask(hub, "POST", "/you/m.git/info/lfs/objects/verify", verify)[0] == 404


def test_validate_yaml(hub):
    for metadata, error in [
        ("license: apache-2.0\ntags: [birds]\ndatasets: [you/x]\nbase_model: microsoft/resnet-18", None),
        ("model-index: [{name: m, results: [{task: {type: t}, metrics: [{type: accuracy, value: 0.5}]}]}]", None),
        ("license: Apache 2.0", '"license"'),
        ("tags: birds", '"tags"'),
        ("task_categories: image-classification", '"task_categories"'),
        ("datasets: [a/b/c]", '"datasets"'),
        ("base_model: [/home/me/model]", '"base_model"'),
        ("model-index: [{name: m, results: [{task: {type: t}, metrics: [{type: accuracy}]}]}]", "metrics"),
        ("model-index: [{name: m, results: [{metrics: []}]}]", "task.type"),
        ("a: [", "YAML"),
    ]:
        card = {"repoType": "model", "content": f"---\n{metadata}\n---\n# Card"}
        status, _, answer = ask(hub, "POST", "/api/validate-yaml", card, token=None)
        errors = [each["message"] for each in json.loads(answer)["errors"]]
        assert (status, len(errors)) == ((200, 0) if error is None else (400, 1))
        assert error is None or error in errors[0]


def test_chunked_bodies_and_connections_kept_alive(hub):
    hub.add_repo("you/m", {})
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"), timeout=10)
    body = commit(file("a.txt")).encode()
    headers = {"Authorization": f"Bearer {hub.token}", "Expect": "100-continue"}
    for parent, status in ((None, 200), ("f" * 40, 412)):
        body = commit(file("a.txt"), **({"parentCommit": parent} if parent else {})).encode()
        connection.request(
            "POST", "/api/models/you/m/commit/main", iter([body[:50], body[50:]]), headers, encode_chunked=True
        )
        answer = connection.getresponse()
        assert (answer.status, bool(answer.read())) == (status, True)
    connection.close()
    assert hub.requests[0].body in hub.received and hub.files("you/m") == {"a.txt": b"text"}


def test_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("HF_HUB_CACHE", "/elsewhere")
    environment = hub.environment(tmp_path)
    assert environment["HF_TOKEN"] == hub.token and environment["HF_HOME"] == str(tmp_path)
    assert not {"HF_HUB_OFFLINE", "HTTPS_PROXY", "HF_HUB_CACHE"} & environment.keys()
    assert "HF_TOKEN" not in hub.environment(tmp_path, token=None)
    assert hub.environment(tmp_path, token="hf_readonlytokenofyou")["HF_TOKEN"] == "hf_readonlytokenofyou"
