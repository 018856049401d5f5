"""Pushing a folder to the Hub, with what can be known beforehand checked beforehand.

The client retries some requests by itself; here the whole of a push is tried again, for a bounded time, when the Hub says
that it may work later (429, 409 of a commit that another overtook, 5xx, a broken connection, a page in place of JSON), after
the pause that its Retry-After asks for. A push that was cut off sends only what is missing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

logger = logging.getLogger(__name__)

ATTEMPTS = 5
LONGEST_PAUSE = 60.0  # seconds
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
# Pickles run code where they are loaded; the rest is of this machine. `_*` and checkpoints as in transformers.
NOT_PUSHED = ["_*", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", ".cache/*"]

Result = TypeVar("Result")


class PushError(OSError):
    """A push that did not happen. The message says why, and what to type next; `__cause__` is the client's error."""


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: `namespace/name`, or `name` for the token's own namespace.
        token: of a user, or `None` for the one that `hf auth login` stored or HF_TOKEN holds.
        revision: branch, `None` for main.
        private: visibility of a repository that is made; `None` leaves it to the Hub.
    """

    repo_id: str
    token: str | None = None
    revision: str | None = None
    private: bool | None = None


def prepare(to: Destination) -> str:
    """Check token, name and namespace, and make repository and branch where they are absent.

    Returns:
        The full `namespace/name`.

    Raises:
        PushError: what is wrong, in one line. Nothing was sent but questions.
    """
    try:
        validate_repo_id(to.repo_id)
    except HFValidationError as error:
        raise PushError(f"{to.repo_id!r} is not a valid repository name: {' '.join(str(error).split())}") from error
    if constants.is_offline_mode():
        raise PushError(
            "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it, or push later with `maxsup-hf push`"
        ) from OfflineModeIsEnabled("HF_HUB_OFFLINE")
    if (to.token or get_token()) is None:
        raise PushError("there is no token for the Hub: run `hf auth login` with a token of the role write, or set HF_TOKEN")
    api = HfApi(token=to.token)
    user = attempt(lambda: api.whoami(), "asking who the token belongs to", to)
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise PushError(
            f"the token of {user['name']} has the role read: make one with the role write, and `hf auth login` again"
        )
    namespace, _, name = to.repo_id.rpartition("/")
    namespace = namespace or user["name"]
    known = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if namespace not in known:
        raise PushError(
            f"{user['name']} cannot push to the namespace {namespace!r} (only to {', '.join(known)}): change the "
            "repository's name, or log in as a member of it"
        )
    repo_id = f"{namespace}/{name}"
    attempt(lambda: api.create_repo(repo_id, private=to.private, exist_ok=True), f"making {repo_id}", to)
    is_private = attempt(lambda: api.repo_info(repo_id), f"looking at {repo_id}", to).private
    if to.private is not None and is_private != to.private:
        logger.warning(
            "%s is there already and %s, though %s was asked for: it stays as it is. `hf repo settings %s --%s` changes it.",
            repo_id, _visibility(is_private), _visibility(to.private), repo_id, _visibility(to.private),
        )  # fmt: skip
    if to.revision not in (None, "main"):
        attempt(
            lambda: api.create_branch(repo_id, branch=str(to.revision), exist_ok=True), f"making branch {to.revision}", to
        )
    return repo_id


def push_folder(folder: str | Path, to: Destination, message: str = "End of training", create_pr: bool = False) -> Any:
    """Push all of a folder that is fit to be pushed, in one commit.

    Args:
        folder: of a saved model. Subfolders go too; checkpoints and pickles (`training_args.bin`, `optimizer.pt`) stay.
        to: where.
        message: of the commit.
        create_pr: make a pull request instead of a commit.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        PushError: it did not happen. The folder is as it was; a second push sends only what is missing.
    """
    if not (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file():
        raise PushError(f"{folder} holds no saved model (no config.json or adapter_config.json)")
    repo_id = prepare(to)
    again = f"`maxsup-hf push {folder} {repo_id}" + (f" --revision {to.revision}`" if to.revision else "`")
    api = HfApi(token=to.token)
    return attempt(
        lambda: api.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            commit_message=message,
            revision=to.revision,
            create_pr=create_pr,
            ignore_patterns=NOT_PUSHED,
        ),
        f"pushing {folder} to {repo_id}",
        to,
        again,
    )


def attempt(call: Callable[[], Result], what: str, to: Destination, again: str = "") -> Result:
    """Call, and call again while the Hub says that it may work later.

    Args:
        call: the request.
        what: it does, for messages.
        to: where it goes; its token is kept out of every message.
        again: the command that tries it later.

    Raises:
        PushError: it failed for good, or `ATTEMPTS` times.
    """
    for number in range(1, ATTEMPTS + 1):
        try:
            return call()
        except Exception as error:  # the client raises those of its HTTP library, of json and its own
            status = _status(error)
            passing = status in RETRIED if status is not None else _is_connection(error)
            if not passing or number == ATTEMPTS:
                hint = _hint(status)
                later = f"; the model is saved as it was, and {again} pushes it" if again else ""
                raise PushError(_without(to.token, f"{what} failed: {_reason(error, status)}{hint}{later}")) from error
            pause = min(LONGEST_PAUSE, _retry_after(error) or 2.0 ** (number - 1))
            logger.warning(
                "%s", _without(to.token, f"{what} failed ({_reason(error, status)}); trying again in {pause:g} s")
            )
            time.sleep(pause)
    raise AssertionError


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None) if isinstance(error, HfHubHTTPError) else None


def _is_connection(error: BaseException) -> bool:
    """A broken connection, or a page where JSON was expected."""
    if isinstance(error, json.JSONDecodeError):
        return True
    return isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.partition(".")[0].startswith("http")


def _reason(error: BaseException, status: int | None) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "the Hub answered with something that is not JSON"
    words = " ".join(str(error).split())
    return f"{status}: {words[:300]}" if status else f"{type(error).__name__}: {words[:300]}"


def _hint(status: int | None) -> str:
    return {
        401: "; run `hf auth login` with a valid token",
        403: "; the token needs the role write in that namespace: `hf auth login` with such a one",
        404: "; look at the repository's name and at what the token may see",
    }.get(status or 0, "")


def _retry_after(error: BaseException) -> float | None:
    """Seconds that the Hub asks to wait; it says them as a number or as a date."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After")
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
        except ValueError:
            return None


def _without(token: str | None, message: str) -> str:
    return message.replace(token, "<token>") if token else message


def _visibility(private: bool | None) -> str:
    return "private" if private else "public"
