"""A folder becomes a commit: the whole new state or, when anything fails, the old one."""

from __future__ import annotations

import contextlib
import fnmatch
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tenacity
from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging, validate_repo_id


logger = logging.get_logger(__name__)

TAG = "madkd"  # in the card of everything that this package publishes
ATTEMPTS = 6
ATTEMPTS_BEFORE = 3  # while nothing is at stake yet
LONGEST_WAIT = 300  # seconds; what a Hub may ask for by Retry-After
MOVED_ON = 412  # somebody committed in between
WORTH_RETRYING = {408, 429, 500, 502, 503, 504, MOVED_ON}
BLANK = (".gitattributes", ".gitignore", "README.md", "LICENSE*")  # what a new repo may hold already


class HubError(OSError):
    """What keeps something from being published, in one sentence with its remedy; the Hub is as it was."""


@dataclass(frozen=True)
class HubRepo:
    """Where something is published.

    Attributes:
        repo_id: "name", "user/name" or "organization/name".
        repo_type: "dataset" or "model".
        private: whether a new repo is private; one that exists stays as it is.
        token: a Hub token; by default HF_TOKEN or the one that `hf auth login` stored.
        revision: the branch to commit to, made where it is missing; main by default.
        create_pr: open a pull request with the commit, for instance on somebody else's repo.
    """

    repo_id: str
    repo_type: str
    private: bool = True
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    create_pr: bool = False

    def check(self) -> HubRepo:
        """See whether a push can succeed, before any long work.

        Returns:
            The same, with the whole "owner/name".

        Raises:
            HubError: no Hub, no token or one that may not write there, or a repo that holds something else.
        """
        if constants.is_offline_mode():
            raise HubError(
                f"Cannot publish {self.repo_id}: HF_HUB_OFFLINE=1 is set; unset it, or leave --push_to_hub out."
            )
        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise HubError(f"{self.repo_id!r} is no name for a repo (expected owner/name): {error}") from error
        if self._token is None:
            raise HubError(
                f"Cannot publish {self.repo_id} without a token: run `hf auth login`, or set HF_TOKEN, with a token "
                f"that may write ({constants.ENDPOINT}/settings/tokens)."
            )
        with self._one_sentence():
            user = self._retried(self._api.whoami, attempts=ATTEMPTS_BEFORE)
            repo = self if "/" in self.repo_id else replace(self, repo_id=f"{user['name']}/{self.repo_id}")
            repo._check_rights(user)
            self._retried(repo._check_not_taken, attempts=ATTEMPTS_BEFORE)
        return repo

    def push(self, folder: str | Path, message: str, ours: Sequence[str]) -> CommitInfo:
        """Make the repo where it is missing, and commit the folder to it: all its files in one commit.

        Repeated after a failure, it uploads only what is missing; repeated after a success, it commits nothing.

        Args:
            folder: what is to be published, complete.
            message: the commit's title.
            ours: patterns of paths in the repo; files there that match and are not in the folder any more are deleted.

        Raises:
            HubError: it failed, and the repo is as it was.
        """
        with self._one_sentence():
            if not self.create_pr:
                self._retried(
                    self._api.create_repo, self.repo_id, repo_type=self.repo_type, private=self.private, exist_ok=True
                )
                if self.revision:
                    self._retried(self._api.create_branch, **self._named, branch=self.revision, exist_ok=True)
            before = self._retried(self._pull_requests, message) if self.create_pr else set()
            return self._retried(self._commit, Path(folder), message, ours, before)

    def _commit(self, folder: Path, message: str, ours: Sequence[str], before: set[int]) -> CommitInfo:
        """One attempt. An earlier one may have succeeded and only its answer been lost: then nothing is left to do."""
        if self.create_pr and (made := self._pull_requests(message) - before):
            return self._pull_request(made.pop(), message)
        head = self._api.repo_info(**self._named, revision=self.revision).sha
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        adds = [CommitOperationAdd(name, path) for name, path in files.items()]
        stale = [name for name in self._files(head) if name not in files and _matches(name, ours)]
        return self._api.create_commit(
            **self._named,
            operations=[*adds, *map(CommitOperationDelete, stale)],
            commit_message=message,
            revision=self.revision,
            create_pr=self.create_pr,
            parent_commit=head,
        )

    @property
    def _token(self) -> str | None:
        return self.token or get_token()

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self._token, library_name="madkd_hf")

    @property
    def _named(self) -> dict[str, str]:
        return {"repo_id": self.repo_id, "repo_type": self.repo_type}

    def _check_rights(self, user: dict[str, Any]) -> None:
        role = user.get("auth", {}).get("accessToken", {}).get("role")
        if role == "read":
            raise HubError(
                f"The token of {user['name']} may only read: make one that may write at "
                f"{constants.ENDPOINT}/settings/tokens, for {self.repo_id}."
            )
        owner = self.repo_id.split("/")[0]
        owners = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
        if owner not in owners and not self.create_pr:
            raise HubError(
                f"{user['name']} may not write to {self.repo_id}: pass a name under one of {', '.join(owners)}, or "
                f"log in as {owner}."
            )

    def _check_not_taken(self) -> None:
        """A repo that somebody filled with something else is not overwritten, unless by a pull request."""
        try:
            info = self._api.repo_info(**self._named)
        except RepositoryNotFoundError:
            if self.create_pr:
                raise HubError(
                    f"There is no {self.repo_type} {self.repo_id} to open a pull request on: push without it, or look "
                    "at the name."
                ) from None
            return
        with contextlib.suppress(RevisionNotFoundError):  # a new branch starts from main
            info = self._api.repo_info(**self._named, revision=self.revision)
        other = [name for name in self._files(info.sha) if not _matches(name, BLANK)]
        if other and TAG not in (info.tags or []) and not self.create_pr:
            raise HubError(
                f"The name {self.repo_id} is taken: that {self.repo_type} holds {', '.join(other[:3])} and does not "
                f"come from here (its card lacks the tag {TAG!r}); pass another name, or open a pull request on it."
            )

    def _files(self, revision: str) -> list[str]:
        tree = self._api.list_repo_tree(**self._named, recursive=True, revision=revision)
        return [entry.path for entry in tree if isinstance(entry, RepoFile)]

    def _pull_requests(self, title: str) -> set[int]:
        found = self._api.get_repo_discussions(**self._named, discussion_type="pull_request")
        return {request.num for request in found if request.title == title}

    def _pull_request(self, number: int, message: str) -> CommitInfo:
        oid = self._api.repo_info(**self._named, revision=f"refs/pr/{number}").sha
        kind = "datasets/" if self.repo_type == "dataset" else ""
        url = f"{constants.ENDPOINT}/{kind}{self.repo_id}"
        return CommitInfo(
            commit_url=f"{url}/commit/{oid}",
            commit_message=message,
            commit_description="",
            oid=oid,
            pr_url=f"{url}/discussions/{number}",
        )

    def _retried(self, call: Callable, *args: Any, attempts: int = ATTEMPTS, **kwargs: Any) -> Any:
        """The client retries transfers of files, and none of the calls about repos and commits."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_may_pass),
            wait=lambda state: _pause(state),
            stop=tenacity.stop_after_attempt(attempts),
            before_sleep=self._tell,
            reraise=True,
        )
        return retrying(call, *args, **kwargs)

    def _tell(self, state: tenacity.RetryCallState) -> None:
        reason = self._without_token(_reason(_of_the_hub(state.outcome.exception())))
        logger.warning(
            "The Hub did not answer as hoped (%s): attempt %d in %.0f s.",
            reason,
            state.attempt_number + 1,
            state.next_action.sleep,
        )

    @contextlib.contextmanager
    def _one_sentence(self) -> Iterator[None]:
        try:
            yield
        except HubError:
            raise
        except Exception as raised:
            error = _of_the_hub(raised)
            if not isinstance(error, (HTTPError, OSError, ValueError, RuntimeError)):
                raise
            raise HubError(self._without_token(self._sentence(error))) from None

    def _sentence(self, error: BaseException) -> str:
        hub, again = constants.ENDPOINT, "the files there are as they were, and the same command goes on"
        reason, status = _reason(error), _status(error)
        if status == 401:
            return (
                f"The Hub does not accept the token ({reason}): log in again with `hf auth login`, or set HF_TOKEN to "
                f"one of {hub}/settings/tokens that may write."
            )
        if status == 403:
            return f"The token may not write to {self.repo_id} ({reason}): use one that may, or pass another name."
        if status == 404:
            return (
                f"The Hub has no {self.repo_type} {self.repo_id} with that revision, or the token may not see it "
                f"({reason}): look at both."
            )
        if status is not None:
            return f"The Hub refused to publish {self.repo_id} ({reason}): {again}."
        if isinstance(error, HTTPError):
            return f"The Hub at {hub} cannot be reached ({reason}): look at the connection; {again}."
        if "xet" in str(error).lower():
            return f"The upload through Xet failed ({reason}): set HF_HUB_DISABLE_XET=1 if {hub} has no Xet; {again}."
        return f"Cannot publish {self.repo_id} ({reason}): {again}."

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "hf_***") if self._token else text


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _of_the_hub(error: BaseException) -> BaseException:
    """What the Hub said: the client wraps the errors of uploads."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
            return cause
        cause = cause.__cause__
    return error


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _may_pass(raised: BaseException) -> bool:
    error = _of_the_hub(raised)
    if isinstance(error, HfHubHTTPError):
        return _status(error) in WORTH_RETRYING
    return isinstance(error, HTTPError)  # no answer at all


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds: what the Hub asks for, or 1, 2, 4, ... with some chance, so that many do not come back at once."""
    error = _of_the_hub(state.outcome.exception())
    asked = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    if asked.isdecimal():
        return min(int(asked), LONGEST_WAIT)
    return tenacity.wait_exponential_jitter(initial=1, max=30)(state)


def _reason(error: BaseException) -> str:
    """One line, not endless."""
    status, said = _status(error), getattr(error, "server_message", None) or str(error)
    line = textwrap.shorten(said, 300) or type(error).__name__
    return f"{status}: {line}" if status else line
