"""When the Hub does not do as asked: wait and ask again, or say in one sentence what is wrong."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
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
MOVED_ON = 412  # somebody committed in between
WORTH_RETRYING = {408, 429, 500, 502, 503, 504, MOVED_ON}


class HubError(OSError):
    """What keeps something from being published, in one sentence with its remedy; the Hub is as it was."""


def retried(call: Callable, *args: Any, attempts: int = ATTEMPTS, **kwargs: Any) -> Any:
    """What the call returns, tried again while the Hub is busy, broken or away.

    The client does so for transfers of files, and for none of the calls about repos and commits.

    Args:
        call, args, kwargs: of the client.
        attempts: at most.
    """

    def tell(state: tenacity.RetryCallState) -> None:
        reason = _reason(_of_the_hub(state.outcome.exception()))
        attempt, pause = state.attempt_number + 1, state.next_action.sleep
        logger.warning("The Hub did not answer as hoped (%s): attempt %d in %.0f s.", reason, attempt, pause)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(_may_pass),
        wait=lambda state: _pause(state),
        stop=tenacity.stop_after_attempt(attempts),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def sentence(raised: BaseException, what: str, goes_on: bool = True) -> str:
    """What went wrong, and the remedy.

    Args:
        raised: by the client.
        what: was to be published, such as "the dataset you/birds".
        goes_on: whether the command that published it goes on where it was.
    """
    error = _of_the_hub(raised)
    again = "the files there are as they were" + (", and the same command goes on" if goes_on else "")
    return _told(error, what, _reason(error), _status(error), again)


def _told(error: BaseException, what: str, reason: str, status: int | None, again: str) -> str:
    hub = constants.ENDPOINT
    if status == 401:
        return (
            f"The Hub does not accept the token ({reason}): log in again with `hf auth login`, or set HF_TOKEN to one "
            f"of {hub}/settings/tokens that may write."
        )
    if status == 403:
        return f"The token may not write to {what} ({reason}): use one that may, or pass another name."
    if status == 404:
        return f"The Hub does not have {what} with that revision, or hides it from the token ({reason}): look at both."
    if status is not None:
        remedy = again if _may_pass(error) else "the files there are as they were"
        return f"The Hub refused to publish {what} ({reason}): {remedy}."
    if isinstance(error, HTTPError):
        return f"The Hub at {hub} cannot be reached ({reason}): look at the connection; {again}."
    if "xet" in str(error).lower():
        return f"The upload through Xet failed ({reason}): set HF_HUB_DISABLE_XET=1 if {hub} has no Xet; {again}."
    return f"Cannot publish {what} ({reason}): {again}."


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
    asked = _asked(error.response.headers) if isinstance(error, HfHubHTTPError) else None
    return tenacity.wait_exponential_jitter(initial=1, max=30)(state) if asked is None else min(asked, LONGEST_WAIT)


def _asked(headers: Mapping[str, str]) -> float | None:
    """For how long the Hub wants to be left alone."""
    after, limit = headers.get("Retry-After", ""), parse_ratelimit_headers(headers)
    if after.isdecimal():
        return int(after)
    with contextlib.suppress(ValueError):  # no date
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    return limit.reset_in_seconds + 1 if limit and not limit.remaining else None


def _reason(error: BaseException) -> str:
    """One line, not endless, without the token."""
    status, said = _status(error), getattr(error, "server_message", None) or str(error)
    line = excerpt(said) or type(error).__name__
    return f"{status}: {line}" if status else line
