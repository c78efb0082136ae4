"""A folder becomes a commit: the whole new state or, when anything fails, the old one."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    RepoCard,
    constants,
    get_token,
    hf_hub_download,
)
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id

from ..text import keep_secret
from .retries import ATTEMPTS_BEFORE, HubError, explain, may_pass, reason_of, retried


TAG = "madkd"  # in the card of everything that this package publishes
BLANK = (".gitattributes", ".gitignore", "README.md", "LICENSE*")  # what a new repo may hold already
WRITTEN = {  # fields of a card's front matter that we write; a person has added all others
    *("annotations_creators", "base_model", "configs", "dataset_info", "datasets", "library_name", "model-index"),
    *("models", "pipeline_tag", "pretty_name", "size_categories", "source_datasets", "tags", "task_categories"),
}


@dataclass(frozen=True)
class HubRepo:
    """Where something is published.

    Attributes:
        repo_id: "name", "user/name" or "organization/name".
        repo_type: "dataset", "model" or "space".
        private: whether a new repo is private; one that exists stays as it is.
        token: a Hub token; by default HF_TOKEN or the one that `hf auth login` stored.
        revision: the branch to commit to, made where it is missing, or a pull request, "refs/pr/1"; main by default.
        create_pr: open a pull request on main with the commit, for instance on somebody else's repo.
        space_sdk: what runs a new Space, "gradio" or "static".
    """

    repo_id: str
    repo_type: str
    private: bool = True
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    create_pr: bool = False
    space_sdk: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", (self.token or "").strip() or None)  # a file's last line ends in a newline

    def check(self, license: str | None = None) -> HubRepo:
        """See whether a push can succeed, and whether the Hub knows the license, before any long work.

        Returns:
            The same, with the whole "owner/name".
        """
        if constants.is_offline_mode():
            raise HubError(
                f"Cannot publish {self.repo_id}: HF_HUB_OFFLINE=1 is set; unset it, or leave --push_to_hub out."
            )
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise HubError(f"{self.repo_id!r} is no name for a repo (expected owner/name): {error}") from error
        if self.create_pr and self.revision not in (None, "main"):
            raise HubError(
                f"A pull request is opened on main and revision={self.revision!r} names another place: leave one of "
                "the two out."
            )
        if self._token is None:
            raise HubError(
                f"Cannot publish {self.repo_id} without a token: run `hf auth login`, or set HF_TOKEN, with a token "
                f"that may write ({constants.ENDPOINT}/settings/tokens)."
            )
        with self._explained_errors():
            user = retried(self._api.whoami, attempts=ATTEMPTS_BEFORE)
            repo = self if "/" in self.repo_id else replace(self, repo_id=f"{user['name']}/{self.repo_id}")
            repo._check_rights(user)
            retried(repo._check_not_taken, attempts=ATTEMPTS_BEFORE)
            if license is not None and not self.knows_license(license):
                raise HubError(
                    f"The Hub knows no licence {license!r}: pass one of its identifiers, such as apache-2.0, or other."
                )
        return repo

    def knows_license(self, license: str | list[str]) -> bool:
        """Whether the Hub accepts it in a card."""
        card = RepoCard(f"---\nlicense: {json.dumps(license)}\n---\n")
        try:
            retried(card.validate, self.repo_type, attempts=ATTEMPTS_BEFORE)
        except ValueError:
            return False
        return True

    def manual_metadata(self) -> dict[str, Any]:
        """What a person added to the front matter of the card there: a licence, gating, the viewer's settings."""
        with self._explained_errors(), tempfile.TemporaryDirectory() as fresh:
            place = {**self._repo_key, "revision": self.revision, "token": self._token, "cache_dir": fresh}
            try:
                path = retried(hf_hub_download, filename="README.md", **place)
                metadata = RepoCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
            except (RepositoryNotFoundError, RevisionNotFoundError, RemoteEntryNotFoundError):
                return {}
            except (ValueError, yaml.YAMLError):  # no card that could be read
                return {}
        return {name: value for name, value in metadata.items() if name not in WRITTEN}

    def push(self, folder: str | Path, message: str, own: Sequence[str]) -> CommitInfo:
        """Check, make the repo where it is missing, and commit the folder to it: all its files in one commit.

        Repeated after a failure, it uploads only what is missing; repeated after a success, it commits nothing (but
        opens another pull request, where one was asked for). Files there that match the patterns of `own` and are not
        in the folder any more are deleted.
        """
        repo = self.check()
        with repo._explained_errors():
            return repo._push(Path(folder), message, own)

    def _push(self, folder: Path, message: str, own: Sequence[str]) -> CommitInfo:
        if self.create_pr:  # one attempt: where only the answer was lost, another one would open a second one
            try:
                commit = self._commit(folder, message, own)
            except (HTTPError, OSError, RuntimeError) as error:
                if not may_pass(error):
                    raise
                kind = "" if self.repo_type == "model" else f"{self.repo_type}s/"
                place = f"{constants.ENDPOINT}/{kind}{self.repo_id}/discussions"
                raise HubError(
                    f"The Hub did not say whether it opened a pull request ({reason_of(error)}): look under {place} "
                    "first, and run the same command again if there is none."
                ) from None
            if not commit.pr_url:
                raise HubError(f"There is nothing to propose: {self.repo_id} holds these very files already.")
            return commit
        new = {"private": self.private, "space_sdk": self.space_sdk}
        retried(self._api.create_repo, **self._repo_key, **new, exist_ok=True)
        if self.revision and not self.revision.startswith("refs/"):
            retried(self._api.create_branch, **self._repo_key, branch=self.revision, exist_ok=True)
        return retried(self._commit, folder, message, own)

    def _commit(self, folder: Path, message: str, own: Sequence[str]) -> CommitInfo:
        """One attempt. An earlier one may have succeeded and only its answer been lost: then nothing changes."""
        head = self._api.repo_info(**self._repo_key, revision=self.revision).sha
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        adds = [CommitOperationAdd(name, path) for name, path in files.items()]
        stale = [name for name in self._files(head) if name not in files and _matches(name, own)]
        return self._api.create_commit(
            **self._repo_key,
            operations=[*adds, *map(CommitOperationDelete, stale)],
            commit_message=message,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head,
        )

    @property
    def _token(self) -> str | None:
        token = self.token or get_token()
        keep_secret(token)
        return token

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self._token, library_name="madkd_hf")

    @property
    def _repo_key(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def _check_rights(self, user: dict[str, Any]) -> None:
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"The token of {user['name']} may only read: make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens, for {self.repo_id}."
            )
        owner = self.repo_id.split("/")[0]
        may_write = [group["name"] for group in user.get("orgs", []) if group.get("roleInOrg") != "read"]
        if owner not in (user["name"], *may_write) and not self.create_pr:
            raise HubError(
                f"{user['name']} may not write to {self.repo_id}: pass a name under one of "
                f"{', '.join([user['name'], *may_write])}, or log in as {owner}."
            )
        scopes = user.get("auth", {}).get("accessToken", {}).get("fineGrained")
        if scopes and "repo.write" not in json.dumps(scopes) and not self.create_pr:
            raise HubError(
                f"The fine-grained token of {user['name']} may write to no repo: add that permission at "
                f"{constants.ENDPOINT}/settings/tokens, for {self.repo_id}."
            )

    def _check_not_taken(self) -> None:
        """A repo that somebody filled with something else is not overwritten, unless by a pull request."""
        try:
            info = self._api.repo_info(**self._repo_key)
        except RepositoryNotFoundError:
            if self.create_pr:
                raise HubError(
                    f"There is no {self.repo_type} {self.repo_id} to open a pull request on: push without it, or look "
                    "at the name."
                ) from None
            return
        with contextlib.suppress(RevisionNotFoundError):  # a new branch starts from main
            info = self._api.repo_info(**self._repo_key, revision=self.revision)
        refs = self._api.list_repo_refs(**self._repo_key) if self.revision else None
        if refs and (self.revision == info.sha or self.revision in [tag.name for tag in refs.tags]):
            raise HubError(f"{self.revision} of {self.repo_id} is no branch to commit to: pass the name of a branch.")
        foreign = [name for name in self._files(info.sha) if not _matches(name, BLANK)]
        if foreign and TAG not in (info.tags or []) and not self.create_pr:
            raise HubError(
                f"The name {self.repo_id} is taken: that {self.repo_type} holds {', '.join(foreign[:3])} and does not "
                f"come from here (its card lacks the tag {TAG!r}); pass another name, or open a pull request on it."
            )

    def _files(self, revision: str) -> list[str]:
        tree = self._api.list_repo_tree(**self._repo_key, recursive=True, revision=revision)
        return [entry.path for entry in tree if isinstance(entry, RepoFile)]

    @contextlib.contextmanager
    def _explained_errors(self) -> Iterator[None]:
        try:
            yield
        except HubError:
            raise
        except (HTTPError, OSError, ValueError, RuntimeError) as error:
            what = f"the {self.repo_type} {self.repo_id}"
            raise HubError(explain(error, what, goes_on=self.repo_type == "dataset" and not self.create_pr)) from None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits one of the patterns, of which `*` is a name or a part of one, never a path."""
    path = PurePosixPath(name)
    return any(path.match(pattern) and len(path.parts) == len(PurePosixPath(pattern).parts) for pattern in patterns)
