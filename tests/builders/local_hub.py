"""A small Hugging Face Hub on 127.0.0.1: what huggingface_hub, datasets and transformers ask for, kept in memory.

    with LocalHub() as hub:
        subprocess.run([sys.executable, "-c", "..."], env=hub.environment(tmp_path))
        assert hub.files("you/model")["README.md"]

By hand: `python tests/builders/local_hub.py --port 8000 --seed FOLDER`.
"""

import argparse
import base64
import binascii
import hashlib
import itertools
import json
import os
import re
import secrets
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


USERS = {
    "hf_thetokenthatnobodymayfind": {"name": "you", "role": "write", "orgs": {"birders": "write"}},
    "hf_readonlytokenofyou": {"name": "you", "role": "read"},
    "hf_tokenofsomebodyelse": {"name": "somebody", "role": "write"},
}
OWN_TOKEN = "the token of the first user"
LFS_EXTENSIONS = """7z arrow bin gguf gz h5 jpeg jpg model msgpack npy npz onnx parquet pickle pkl png pt pth
    safetensors tar webp zip""".split()
LFS_SIZE = 10 * 1024**2
LICENSES = set(
    """afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0
    bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0
    etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research
    intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c mit
    mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openmdw-1.0 openrail openrail++ osl-3.0 other pddl postgresql unknown
    unlicense wtfpl zlib""".split()
)
SPACE_SDKS = ("gradio", "docker", "static")
FAULTS = {
    "status": {"status", "retry_after", "message"},
    "drop": set(),
    "drop_after": set(),
    "cut": set(),
    "slow": {"seconds"},
}


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class HubError(Exception):
    """An answer that is not 200, in the Hub's words."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body: Any):
        self.status, self.body = status, {"error": message, **body}
        one_line = " ".join(message.split()).encode("ascii", "replace").decode()
        self.headers = {**(headers or {}), "X-Error-Message": one_line}
        if code is not None:
            self.headers["X-Error-Code"] = code


@dataclass(frozen=True)
class Blob:
    """A file's content, and the names that git and LFS have for it."""

    content: bytes
    lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def stored(self) -> bytes:
        """What git holds: an LFS file's pointer, any other file's content."""
        if not self.lfs:
            return self.content
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode()

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.stored) + self.stored).hexdigest()

    @property
    def lfs_sizes(self) -> dict[str, int]:
        return {"size": len(self.content), "pointerSize": len(self.stored)}

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True, eq=False)
class Commit:
    files: dict[str, Blob] = field(repr=False)
    parent: "Commit | None" = field(repr=False)
    author: str
    title: str
    message: str = ""
    oid: str = field(default_factory=lambda: secrets.token_hex(20))
    date: str = field(default_factory=_now)

    def history(self) -> "Iterator[Commit]":
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent

    def under(self, folder: str) -> dict[str, Blob]:
        return {path: blob for path, blob in self.files.items() if not folder or path.startswith(f"{folder}/")}


@dataclass
class Repo:
    type: str
    id: str
    private: bool
    sdk: str | None = None  # of a Space
    refs: dict[str, Commit] = field(default_factory=dict)  # full names: refs/heads/main, refs/pr/1
    commits: dict[str, Commit] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)  # LFS, by sha256
    discussions: list[dict] = field(default_factory=list)

    @property
    def page(self) -> str:
        return f"/{self.id}" if self.type == "model" else f"/{self.type}s/{self.id}"

    def ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)

    def at(self, revision: str) -> Commit:
        if (name := self.ref(revision)) is not None:
            return self.refs[name]
        found = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        if len(found) != 1:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]

    def commit(self, ref: str, commit: Commit) -> Commit:
        self.commits[commit.oid] = self.refs[ref] = commit
        self.objects.update({blob.sha256: blob.content for blob in commit.files.values() if blob.lfs})
        return commit


@dataclass
class Request:
    """One request as it came, and the status that it got (None: no answer)."""

    method: str
    path: str  # with the query, percent-encoded as sent
    headers: Any
    user: dict | None = None
    authorized: bool = False  # came with a token that this Hub knows
    status: int | None = None
    body: bytes = b""

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def json(self) -> dict:
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"Invalid JSON: {error}") from None


@dataclass
class Answer:
    body: bytes | dict | list
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Fault:
    match: re.Pattern
    kind: str
    times: int | None
    options: dict[str, Any]


_ROUTES: list[tuple[str, re.Pattern, Callable]] = []
_ID, _REV = r"(?P<repo_id>[^/]+(?:/[^/]+)?)", r"(?P<revision>refs/[a-z]+/[^/]+|[^/]+)"
_API = rf"/api/(?P<kind>models|datasets|spaces)/{_ID}"
_PAGE = rf"/(?:(?P<kind>datasets|spaces)/)?{_ID}"


def _route(method: str, pattern: str) -> Callable:
    def register(function: Callable) -> Callable:
        _ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class LocalHub:
    """A Hub in this process: `with LocalHub() as hub:` serves until the block ends.

    `hub.requests` lists every request; `hub.received` is every byte of their bodies.
    """

    def __init__(self, port: int = 0, users: dict[str, dict] | None = None):
        self.users = USERS if users is None else users
        self.token = next(iter(self.users))
        self.requests: list[Request] = []
        self._repos: dict[tuple[str, str], Repo] = {}
        self._faults: list[Fault] = []
        self._lock = threading.RLock()  # one request changes the state at a time, so a commit is all or nothing
        self._signature = secrets.token_hex(16)
        self._stopped = threading.Event()
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "LocalHub":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()

    # For tests: what is there, what came, what goes wrong.

    def add_repo(
        self,
        repo_id: str,
        folder_or_files: Path | dict[str, bytes],
        repo_type: str = "model",
        private: bool = False,
    ) -> str:
        """Makes a repo whose main branch has exactly these files (a new commit if it exists); returns the commit."""
        files = folder_or_files
        if not isinstance(files, dict):
            folder = Path(files)
            paths = sorted(path for path in folder.rglob("*") if path.is_file())
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
        blobs = {path: Blob(content, _is_lfs(path, len(content))) for path, content in files.items()}
        with self._lock:
            repo = self._repos.setdefault((repo_type, repo_id), Repo(repo_type, repo_id, private))
            commit = Commit(blobs, repo.refs.get("refs/heads/main"), repo_id.split("/")[0], "initial commit")
            return repo.commit("refs/heads/main", commit).oid

    def repos(self) -> dict[tuple[str, str], Repo]:
        """(repo_type, repo_id) -> repo, with its `.private`."""
        with self._lock:
            return dict(self._repos)

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """path -> content at a revision."""
        with self._lock:
            commit = self._repos[repo_type, repo_id].at(revision)
        return {path: blob.content for path, blob in sorted(commit.files.items())}

    def commits(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> list[dict]:
        """The commits of a revision, newest first."""
        with self._lock:
            history = self._repos[repo_type, repo_id].at(revision).history()
        return [{"oid": commit.oid, "title": commit.title, "author": commit.author} for commit in history]

    @property
    def received(self) -> bytes:
        """Every request's body, and in plain what came in base64 in them (the regular files of a commit)."""
        parts = []
        for body in [request.body for request in list(self.requests)]:
            parts.append(body)
            for encoded in re.findall(rb'"(?:content|sample)": ?"([\w+/=]+)"', body):
                try:
                    parts.append(base64.b64decode(encoded, validate=True))
                except binascii.Error:
                    pass  # not base64: the plain text is in the body already
        return b"\n".join(parts)

    def fault(self, match: str, kind: str, times: int | None = 1, **options: Any) -> None:
        """The next `times` requests (None: all) whose "METHOD /path?query" matches the regex go wrong.

        status: answer `status` (503) with `message`, and Retry-After if `retry_after` is given; nothing is done.
        drop: read the request, do nothing, close the connection. drop_after: do it, then close without an answer.
        cut: read half of the body, do nothing, close the connection. slow: do it, answer after `seconds`.
        """
        if kind not in FAULTS or not options.keys() <= FAULTS[kind]:
            raise ValueError(f"fault {kind!r} with {sorted(options)}: there are {FAULTS}")
        with self._lock:
            self._faults.append(Fault(re.compile(match), kind, times, options))

    def clear_faults(self) -> None:
        with self._lock:
            self._faults.clear()

    def reset(self) -> None:
        """As it began: no repos, no faults, nothing asked yet."""
        with self._lock:
            self._repos.clear()
            self._faults.clear()
            self.requests.clear()

    @cached_property
    def home(self) -> Path:
        """Caches that child processes may share."""
        self._home = tempfile.TemporaryDirectory(prefix="home")
        return Path(self._home.name)

    def environment(self, home: Path, token: str | None = OWN_TOKEN) -> dict[str, str]:
        """The environment of a child process that knows this Hub only, with its caches in `home`."""
        ours = ("HF_", "HUGGING", "TRANSFORMERS_")
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ours) and not name.lower().endswith("_proxy")
        }
        environment |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        if token is not None:
            environment["HF_TOKEN"] = self.token if token == OWN_TOKEN else token
        return environment

    # What the handler calls.

    def _fault_for(self, request: Request) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.times != 0 and fault.match.search(f"{request.method} {request.path}"):
                    fault.times = None if fault.times is None else fault.times - 1
                    return fault
        return None

    def _authenticate(self, request: Request) -> None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        request.user = self.users.get(token)
        request.authorized = request.user is not None
        if token and not request.authorized:
            raise HubError(401, "Invalid credentials in Authorization header")

    def _answer(self, request: Request) -> Answer:
        try:
            self._authenticate(request)
            path = urlsplit(request.path).path
            method = "GET" if request.method == "HEAD" else request.method
            for its_method, pattern, function in _ROUTES:
                if its_method == method and (match := pattern.fullmatch(path)):
                    arguments = {name: unquote(value or "") for name, value in match.groupdict().items()}
                    with self._lock:
                        if "repo_id" in arguments:
                            kind = arguments.pop("kind") or "models"
                            arguments["repo"] = self._readable(request, kind[:-1], arguments.pop("repo_id"))
                        return function(self, request, **arguments)
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            return Answer(error.body, error.status, error.headers)
        except Exception:
            return Answer({"error": traceback.format_exc()}, 500)

    def _readable(self, request: Request, repo_type: str, repo_id: str) -> Repo:
        repo = self._repos.get((repo_type, repo_id))
        if repo is not None and (not repo.private or _owns(request.user, repo.id)):
            return repo
        # The Hub tells nobody whether it is missing or private. Clients know its 401 by https://, hence the code.
        if request.user is None:
            raise HubError(401, "Invalid username or password.", "RepoNotFound")
        raise HubError(404, "Repository not found", "RepoNotFound")

    def _check_write(self, request: Request, repo: Repo, revision: str = "", pull_request: bool = False) -> None:
        _check_write_token(request)
        mine = any(
            f"refs/pr/{each['num']}" == revision and each["author"]["name"] == request.user["name"]
            for each in repo.discussions
        )
        if not (_owns(request.user, repo.id) or pull_request or mine):
            raise HubError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")

    # Accounts and repos.

    @_route("GET", "/api/whoami-v2")
    def _whoami(self, request: Request) -> Answer:
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        name = request.user["name"]
        orgs = [
            {"type": "org", "id": _id(org), "name": org, "fullname": org, "isEnterprise": False, "roleInOrg": role}
            for org, role in dict(request.user.get("orgs", {})).items()
        ]
        token = {"displayName": f"{name}'s token", "role": request.user["role"]}
        if request.user["role"] == "fineGrained":
            token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": request.user["scopes"]}
        auth = {"type": "access_token", "accessToken": token}
        user = {"type": "user", "id": _id(name), "name": name, "fullname": name, "isPro": False}
        return Answer({**user, "orgs": orgs, "auth": auth})

    @_route("POST", "/api/repos/create")
    def _create_repo(self, request: Request) -> Answer:
        asked = request.json()
        repo_type = asked.get("type") or "model"
        if request.user is None:
            raise HubError(401, "Invalid username or password.")
        namespace = asked.get("organization") or request.user["name"]
        repo = Repo(repo_type, f"{namespace}/{asked['name']}", _private(asked, False), asked.get("sdk"))
        if repo_type == "space" and repo.sdk not in SPACE_SDKS:
            raise HubError(400, f"Invalid sdk: {repo.sdk}")
        if request.user["role"] != "write" or not _owns(request.user, repo.id):
            message = f'You don\'t have the rights to create a {repo_type} under the namespace "{namespace}"'
            raise HubError(403, message)
        if not re.fullmatch(r"[\w.-]{1,96}", asked["name"]):
            raise HubError(400, f"Invalid repo name: {asked['name']}")
        url = f"{self.url}{repo.page}"
        if (repo_type, repo.id) in self._repos:
            raise HubError(409, f"You already created this {repo_type} repo", url=url)
        lines = [f"*.{extension} filter=lfs diff=lfs merge=lfs -text\n" for extension in LFS_EXTENSIONS]
        files = {".gitattributes": Blob("".join(lines).encode(), False)}
        repo.commit("refs/heads/main", Commit(files, None, request.user["name"], "initial commit"))
        self._repos[repo_type, repo.id] = repo
        return Answer({"url": url, "name": repo.id, "id": _id(repo.page)})

    @_route("DELETE", "/api/repos/delete")
    def _delete_repo(self, request: Request) -> Answer:
        asked = request.json()
        namespace = asked.get("organization") or (request.user or {}).get("name", "")
        repo = self._readable(request, asked.get("type") or "model", f"{namespace}/{asked['name']}")
        self._check_write(request, repo)
        del self._repos[repo.type, repo.id]
        return Answer(b"OK")

    @_route("PUT", f"{_API}/settings")
    def _settings(self, request: Request, repo: Repo) -> Answer:
        self._check_write(request, repo)
        repo.private = _private(request.json(), repo.private)
        return Answer({"private": repo.private, "gated": False})

    @_route("GET", f"{_API}/revision/{_REV}")
    @_route("GET", _API)
    def _info(self, request: Request, repo: Repo, revision: str = "main") -> Answer:
        commit = repo.at(revision)
        card, siblings = _card_data(commit), []
        for path, blob in sorted(commit.files.items()):
            siblings.append({"rfilename": path})
            if request.flag("blobs"):
                siblings[-1] |= {"size": len(blob.content), "blobId": blob.oid}
                siblings[-1] |= {"lfs": {"sha256": blob.sha256, **blob.lfs_sizes}} if blob.lfs else {}
        info = {"_id": _id(repo.page), "id": repo.id, "author": repo.id.split("/")[0], "sha": commit.oid}
        info |= {"lastModified": commit.date, "createdAt": list(commit.history())[-1].date, "private": repo.private}
        info |= {"gated": False, "disabled": False, "downloads": 0, "likes": 0, "cardData": card, "tags": _tags(card)}
        if repo.type == "model":
            info |= {"modelId": repo.id, "library_name": card.get("library_name")}
            info |= {"pipeline_tag": card.get("pipeline_tag"), "model-index": card.get("model-index")}
        return Answer({**info, "siblings": siblings})

    # History.

    @_route("GET", f"{_API}/refs")
    def _refs(self, request: Request, repo: Repo) -> Answer:
        answer: dict[str, list] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        kinds = {"heads": "branches", "convert": "converts", "tags": "tags", "pr": "pullRequests"}
        for ref, commit in repo.refs.items():
            _, kind, name = ref.split("/", 2)
            answer[kinds[kind]].append({"name": name, "ref": ref, "targetCommit": commit.oid})
        if not request.flag("include_prs"):
            del answer["pullRequests"]
        return Answer(answer)

    @_route("POST", f"{_API}/branch/(?P<name>[^/]+)")
    def _create_branch(self, request: Request, repo: Repo, name: str) -> Answer:
        self._check_write(request, repo)
        if (ref := f"refs/heads/{name}") in repo.refs:
            raise HubError(409, f"Reference already exists: {ref}")
        repo.refs[ref] = repo.at(request.json().get("startingPoint") or "main")
        return Answer(b"OK")

    @_route("GET", f"{_API}/commits/{_REV}")
    def _commits(self, request: Request, repo: Repo, revision: str) -> Answer:
        return Answer(
            [
                {"id": each.oid, "title": each.title, "message": each.message, "date": each.date}
                | {"authors": [{"user": each.author}]}
                for each in repo.at(revision).history()
            ]
        )

    @_route("GET", f"{_API}/discussions")
    def _discussions(self, request: Request, repo: Repo) -> Answer:
        wanted, author = request.query.get("type", ["all"])[0], request.query.get("author", [None])[0]
        found = [each for each in reversed(repo.discussions) if author in (None, each["author"]["name"])]
        found = [] if wanted == "discussion" else found
        return Answer({"discussions": found, "count": len(found), "start": 0})

    def _open(self, request: Request, repo: Repo, title: str) -> int:
        """Opens a pull request."""
        num, author, about = len(repo.discussions) + 1, {"name": request.user["name"]}, {"name": repo.id}
        pull_request = {"num": num, "title": title, "author": author, "repo": {**about, "type": repo.type}}
        repo.discussions.append({**pull_request, "status": "open", "isPullRequest": True, "createdAt": _now()})
        return num

    # Reading.

    @_route("GET", f"{_API}/tree/{_REV}(?:/(?P<folder>.*))?")
    def _tree(self, request: Request, repo: Repo, revision: str, folder: str) -> Answer:
        commit, folder = repo.at(revision), folder.strip("/")
        if folder and not commit.under(folder):
            raise HubError(404, f'{folder} does not exist on "{revision}"', "EntryNotFound")
        deep, start = request.flag("recursive"), f"{folder}/" if folder else ""
        paths = set()
        for path in commit.under(folder):
            parts = path[len(start) :].split("/")
            ends = range(1, len(parts) + 1) if deep else [1]
            paths |= {start + "/".join(parts[:end]) for end in ends}
        return Answer([_entry(commit, path, request.flag("expand")) for path in sorted(paths)])

    @_route("POST", f"{_API}/paths-info/{_REV}")
    def _paths_info(self, request: Request, repo: Repo, revision: str) -> Answer:
        if "json" in request.headers.get("Content-Type", ""):
            asked = request.json()
        else:
            form = parse_qs(request.body.decode())
            asked = {"paths": form.get("paths", []), "expand": form.get("expand", [""])[0].lower() == "true"}
        commit = repo.at(revision)
        paths = [path.strip("/") for path in asked["paths"]]
        there = [path for path in paths if path in commit.files or (path and commit.under(path))]
        return Answer([_entry(commit, path, bool(asked.get("expand"))) for path in there])

    @_route("GET", f"{_PAGE}/resolve/{_REV}/(?P<path>.+)")
    def _resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        commit = repo.at(revision)
        headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        blob = commit.files.get(path)
        if blob is None:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        content = blob.content
        headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream"}
        headers["Content-Disposition"] = f"inline; filename*=UTF-8''{quote(path.split('/')[-1])}"
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(len(content))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("Range", "").strip())
        if asked is None or not any(asked.groups()):
            return Answer(content, headers=headers)
        first, last = asked.groups()
        start = int(first) if first else max(len(content) - int(last), 0)
        end = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= end:
            headers["Content-Range"] = f"bytes */{len(content)}"
            raise HubError(416, "Range Not Satisfiable", headers=headers)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return Answer(content[start:end], 206, headers)

    # Writing.

    @_route("POST", "/api/validate-yaml")
    def _validate_yaml(self, request: Request) -> Answer:
        content = request.json()["content"]
        if not _front_matter(content):
            return Answer({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        if errors := _card_errors(content):
            raise HubError(400, errors[0], errors=[{"message": error} for error in errors], warnings=[])
        return Answer({"errors": [], "warnings": []})

    @_route("POST", f"{_API}/preupload/{_REV}")
    def _preupload(self, request: Request, repo: Repo, revision: str) -> Answer:
        self._check_write(request, repo, revision, request.flag("create_pr"))
        commit, answer = repo.at(revision), []
        for file in request.json()["files"]:
            mode = "lfs" if _is_lfs(file["path"], file["size"]) else "regular"
            there = commit.files.get(file["path"])
            found = {"oid": there.etag} if there is not None else {}
            answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **found})
        return Answer({"files": answer, "commitOid": commit.oid})

    @_route("POST", f"{_PAGE}\\.git/info/lfs/objects/batch")
    def _lfs_batch(self, request: Request, repo: Repo) -> Answer:
        _check_write_token(request)  # who may only open a pull request uploads here too
        objects = []
        for each in request.json()["objects"]:
            answer = {"oid": each["oid"], "size": each["size"], "authenticated": True}
            if each["oid"] not in repo.objects:
                upload = f"{self.url}/lfs-storage/{repo.type}s/{repo.id}/{each['oid']}?Signature={self._signature}"
                verify = f"{self.url}{repo.page}.git/info/lfs/objects/verify"
                answer["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
            objects.append(answer)
        return Answer({"transfer": "basic", "objects": objects})

    @_route("PUT", "/lfs-storage/(?P<repo_kind>[a-z]+)s/(?P<name>[^/]+/[^/]+)/(?P<oid>[0-9a-f]{64})")
    def _lfs_put(self, request: Request, repo_kind: str, name: str, oid: str) -> Answer:
        # As in S3, the signature in the address is what lets one in: clients send no token here.
        repo = self._repos.get((repo_kind, name))
        if repo is None or request.query.get("Signature") != [self._signature]:
            raise HubError(403, "SignatureDoesNotMatch")
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, "BadDigest: the content has another sha256 than the one announced")
        repo.objects[oid] = request.body
        return Answer(b"", headers={"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})

    @_route("POST", f"{_PAGE}\\.git/info/lfs/objects/verify")
    def _lfs_verify(self, request: Request, repo: Repo) -> Answer:
        _check_write_token(request)
        asked = request.json()
        if len(repo.objects.get(asked["oid"], b"")) != asked["size"] or asked["oid"] not in repo.objects:
            raise HubError(404, "LFS object not found")
        return Answer({})

    @_route("POST", f"{_API}/commit/{_REV}")
    def _commit(self, request: Request, repo: Repo, revision: str) -> Answer:
        create_pr = request.flag("create_pr")
        self._check_write(request, repo, revision, create_pr)
        ref = repo.ref(revision)
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        try:
            header, *operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
            about = header["value"]
            parent = repo.refs[ref]
            if not parent.oid.startswith(about.get("parentCommit") or ""):
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            files = dict(parent.files)
            for operation in operations:
                _apply(repo, files, operation["key"], operation["value"])
            title = about["summary"]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise HubError(400, f"Malformed commit: {error!r}") from None
        answer = {"success": True, "hookOutput": ""}
        if create_pr:
            num = self._open(request, repo, title)
            ref, answer["pullRequestUrl"] = f"refs/pr/{num}", f"{self.url}{repo.page}/discussions/{num}"
        commit = Commit(files, parent, request.user["name"], title, about.get("description", ""))
        repo.commit(ref, commit)
        return Answer({**answer, "commitUrl": f"{self.url}{repo.page}/commit/{commit.oid}", "commitOid": commit.oid})


def _owns(user: dict | None, repo_id: str) -> bool:
    return user is not None and repo_id.split("/")[0] in [
        user["name"],
        *(org for org, role in user.get("orgs", {}).items() if role != "read"),
    ]


def _check_write_token(request: Request) -> None:
    if request.user is None:
        raise HubError(401, "Invalid username or password.", "RepoNotFound")
    if request.user["role"] != "write":
        raise HubError(403, "Forbidden: you must use a write token to upload to a repository.")


def _id(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()[:24]


def _private(asked: dict, default: bool) -> bool:
    return asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private", default))


def _is_lfs(path: str, size: int) -> bool:
    return size > LFS_SIZE or path.rsplit(".", 1)[-1].lower() in LFS_EXTENSIONS


def _apply(repo: Repo, files: dict[str, Blob], key: str, value: dict) -> None:
    """One line of a commit, done to its files."""
    path = value["path"]
    if key in ("file", "lfsFile"):
        parts = path.split("/")
        if {"", ".", "..", ".git"} & set(parts):
            raise HubError(400, f"Invalid path in repo: {path}")
        folders = {"/".join(parts[:end]) for end in range(1, len(parts))}
        if folders & files.keys() or any(other.startswith(f"{path}/") for other in files):
            raise HubError(400, f"{path} is a file here and a folder there")
    if key == "file":
        encoded = value.get("encoding", "utf-8") == "base64"
        content = base64.b64decode(value["content"]) if encoded else value["content"].encode()
        if path == "README.md" and (errors := _card_errors(content.decode())):
            raise HubError(400, f"Invalid metadata in README.md: {errors[0]}")
        files[path] = Blob(content, lfs=False)
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            message = "Your push was rejected because an LFS pointer pointed to a file that does not exist."
            raise HubError(400, f"{message} Offending file: {path}")
        files[path] = Blob(repo.objects[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [path] if key == "deletedFile" else [other for other in files if other.startswith(folder)]
        if not gone or not files.keys() >= set(gone):
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for each in gone:
            del files[each]
    else:
        raise HubError(400, f"Unknown operation: {key}")


def _entry(commit: Commit, path: str, expand: bool) -> dict:
    """A file or a folder as the tree endpoint shows it."""

    def identity(at: Commit) -> str | None:
        if path in at.files:
            return at.files[path].oid
        inside = sorted((name, blob.oid) for name, blob in at.under(path).items())
        return hashlib.sha1(repr(inside).encode()).hexdigest() if inside else None

    blob = commit.files.get(path)
    entry = {"type": "directory" if blob is None else "file", "oid": identity(commit), "path": path, "size": 0}
    if blob is not None:
        entry["size"] = len(blob.content)
        if blob.lfs:
            entry["lfs"] = {"oid": blob.sha256, **blob.lfs_sizes}
    if expand:
        *_, last = itertools.takewhile(lambda each: identity(each) == entry["oid"], commit.history())
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": last.date}
    return entry


def _front_matter(content: str) -> str:
    match = re.match(r"---[ \t]*\r?\n(.*?)^---[ \t]*$", content.lstrip("\ufeff"), re.DOTALL | re.MULTILINE)
    return match[1].strip() if match else ""


def _card_data(commit: Commit) -> dict:
    readme = commit.files.get("README.md")
    try:
        card = yaml.safe_load(_front_matter(readme.content.decode())) if readme else None
    except (yaml.YAMLError, UnicodeDecodeError):
        card = None
    return json.loads(json.dumps(card, default=str)) if isinstance(card, dict) else {}


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _tags(card: dict) -> list[str]:
    tags = [*_listed(card.get("library_name")), *_listed(card.get("tags")), *_listed(card.get("language"))]
    for key, name in (("task_categories",) * 2, ("base_model",) * 2, ("datasets", "dataset"), ("license",) * 2):
        tags += [f"{name}:{value}" for value in _listed(card.get(key))]
    return tags


def _card_errors(content: str) -> list[str]:
    """What the Hub would refuse in a card's YAML, one sentence each."""
    try:
        card = yaml.safe_load(_front_matter(content))
    except yaml.YAMLError as error:
        return [f"YAML Metadata Error: {error}"]
    if card is None:
        return []
    if not isinstance(card, dict):
        return ["YAML Metadata Error: the metadata must be a mapping"]
    errors = []
    if any(not isinstance(value, str) or value not in LICENSES for value in _listed(card.get("license"))):
        errors.append(f'"license" must be one of [{", ".join(sorted(LICENSES))}]')
    for key in ("tags", "task_categories"):
        if key in card and not (isinstance(card[key], list) and all(isinstance(each, str) for each in card[key])):
            errors.append(f'"{key}" must be an array of strings')
    for key in ("datasets", "base_model"):
        for value in _listed(card.get(key)):
            if not isinstance(value, str) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{key}" with value {value!r} is not valid. Use a repo id of the Hub')
    return errors + _model_index_errors(card.get("model-index"))


def _model_index_errors(index: Any) -> list[str]:
    def mapping(value: Any, *keys: str) -> bool:
        return isinstance(value, dict) and all(key in value for key in keys)

    if index is None:
        return []
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for place, model in enumerate(index):
        where = f'"model-index[{place}]'
        if not mapping(model, "name", "results") or not isinstance(model["results"], list):
            errors.append(f'{where}" must have a "name" and an array of "results"')
            continue
        for number, result in enumerate(model["results"]):
            if not mapping(result, "task", "metrics") or not mapping(result["task"], "type"):
                errors.append(f'{where}.results[{number}]" must have a "task.type" and "metrics"')
            elif not all(mapping(metric, "type", "value") for metric in _listed(result["metrics"])):
                errors.append(f'{where}.results[{number}].metrics" must each have a "type" and a "value"')
    return errors


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    hub: LocalHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # headers and body in one write
    server: _Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_any(self) -> None:
        hub = self.server.hub
        request = Request(self.command, self.path, self.headers)
        fault = hub._fault_for(request)
        kind = fault.kind if fault else None
        request.body = self._read_body(half=kind == "cut")
        hub.requests.append(request)
        if kind in ("drop", "cut") or hub._stopped.is_set():
            self.close_connection = True
            return
        if kind == "status":
            wait = fault.options.get("retry_after")
            status = fault.options.get("status", 503)
            headers = {} if wait is None else {"Retry-After": str(wait)}
            message = fault.options.get("message", f"A fault asked for: {status}")
            answer = Answer({"error": message}, status, headers)
        else:
            answer = hub._answer(request)
        if kind == "drop_after":
            self.close_connection = True
            return
        if kind == "slow":
            hub._stopped.wait(fault.options["seconds"])
        request.status = answer.status
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _read_body(self, half: bool) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length // 2 if half else length)
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size // 2 if half else size))
            if half:
                return b"".join(chunks)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(chunks)

    def _send(self, answer: Answer) -> None:
        body, headers = answer.body, {"Content-Type": "text/plain; charset=utf-8", **answer.headers}
        if not isinstance(body, bytes):
            body, headers["Content-Type"] = json.dumps(body).encode(), "application/json; charset=utf-8"
        self.send_response(answer.status)
        for name, value in {**headers, "Content-Length": str(len(body)), "X-Request-Id": secrets.token_hex(8)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seed", type=Path, metavar="FOLDER", help="served as you/FOLDER")
    parser.add_argument("--seed-type", choices=["model", "dataset"], default="model")
    arguments = parser.parse_args()
    with LocalHub(arguments.port) as hub:
        if arguments.seed:
            hub.add_repo(f"you/{arguments.seed.resolve().name}", arguments.seed, arguments.seed_type)
        print(f"export HF_ENDPOINT={hub.url} HF_TOKEN={hub.token} HF_HUB_DISABLE_XET=1 NO_PROXY=127.0.0.1", flush=True)
        for repo_type, repo_id in hub.repos():
            print(f"# {repo_type} {repo_id}", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
