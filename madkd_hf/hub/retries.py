"""When the Hub fails: wait and try again, or explain in one sentence what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tenacity
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers

from ..text import excerpt, get_logger


logger = get_logger(__name__)

ATTEMPTS = 6
ATTEMPTS_BEFORE = 3  # while nothing is at stake yet
LONGEST_WAIT = 300  # seconds; a Hub's window of counting requests
WORTH_RETRYING = {408, 412, 429, 500, 502, 503, 504}  # 412: somebody committed in between


class HubError(OSError):
    """What keeps something from being published, in one sentence with its remedy; the Hub is as it was."""


def retried(call: Callable, *args: Any, attempts: int = ATTEMPTS, **kwargs: Any) -> Any:
    """What the call returns, tried again while the Hub is busy, broken or away.

    The client does so for transfers of files, and for none of the calls about repos and commits.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        wait=lambda state: _pause(state),
        stop=tenacity.stop_after_attempt(attempts),
        before_sleep=_log,
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def explain(error: BaseException, what: str, goes_on: bool = True) -> str:
    """What went wrong, and the remedy.

    `what` was to be published, such as "the dataset you/birds"; `goes_on`: whether the command goes on where it was.
    """
    error = _hub_error(error)
    hub, status, reason = constants.ENDPOINT, _status(error), reason_of(error)
    unchanged = "the files there are as they were"
    if goes_on and (may_pass(error) or status is None):
        unchanged += ", and the same command goes on"
    if status == 401:
        return (
            f"The Hub does not accept the token ({reason}): log in again with `hf auth login`, or set HF_TOKEN to one "
            f"of {hub}/settings/tokens that may write."
        )
    if status == 403:
        return f"The token may not write to {what} ({reason}): use one that may, or pass another name."
    if status == 404:
        return f"The Hub does not have {what} with that revision, or hides it from the token ({reason}): check both."
    if status is not None:
        return f"The Hub refused to publish {what} ({reason}): {unchanged}."
    if isinstance(error, HTTPError):
        return f"The Hub at {hub} cannot be reached ({reason}): check the connection; {unchanged}."
    if "xet" in str(error).lower():
        return f"The upload through Xet failed ({reason}): set HF_HUB_DISABLE_XET=1 if {hub} has no Xet; {unchanged}."
    return f"Cannot publish {what} ({reason}): {unchanged}."


def reason_of(error: BaseException) -> str:
    """What the Hub said: one line, not endless, without the token."""
    error = _hub_error(error)
    line = excerpt(getattr(error, "server_message", None) or str(error)) or type(error).__name__
    return f"{_status(error)}: {line}" if _status(error) else line


def _hub_error(error: BaseException) -> BaseException:
    """The error of the Hub's answer, which the client wraps in uploads; without one, the error itself."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, (HTTPError, OfflineModeIsEnabled)):
        cause = cause.__cause__
    return cause or error


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def may_pass(error: BaseException) -> bool:
    """Whether the Hub is busy, broken or away, and may have done what it was asked."""
    error = _hub_error(error)
    return _status(error) in WORTH_RETRYING if isinstance(error, HfHubHTTPError) else isinstance(error, HTTPError)


def _pause(state: tenacity.RetryCallState) -> float:
    """Seconds: what the Hub asks for, or 1, 2, 4, ... with some chance, so that many do not come back at once."""
    error = _hub_error(state.outcome.exception())
    headers = error.response.headers if isinstance(error, HfHubHTTPError) else {}
    limit = parse_ratelimit_headers(headers)
    if headers.get("Retry-After", "").isdecimal():
        return min(int(headers["Retry-After"]), LONGEST_WAIT)
    if limit and not limit.remaining:
        return min(limit.reset_in_seconds + 1, LONGEST_WAIT)
    return tenacity.wait_exponential_jitter(initial=1, max=30)(state)


def _log(state: tenacity.RetryCallState) -> None:
    reason, seconds = reason_of(state.outcome.exception()), state.next_action.sleep
    logger.warning("The Hub failed (%s): attempt %d in %.0f s.", reason, state.attempt_number + 1, seconds)
