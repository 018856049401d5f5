"""Push a folder to the Hub: check token and repository first, and retry transient errors.

The client retries some requests itself. On top of that, a failed call is repeated for a bounded time when the error may be
transient (429, 409 from a commit that another one overtook, 5xx, a broken connection, an HTML page instead of JSON), after
the pause that Retry-After asks for. Repeating a push is cheap: files that have already arrived are not sent again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from maxsup_hf.hub.record import why_no_weights

logger = logging.getLogger(__name__)

ATTEMPTS = 5
LONGEST_PAUSE = 60.0  # seconds
TRANSIENT = (408, 409, 425, 429, 500, 502, 503, 504)
# Pickles run code when they are loaded; the others are of use on this machine only. `_*` and checkpoints as in transformers.
NOT_PUSHED = ["_*", "checkpoint-*", "*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", ".cache/*"]

Result = TypeVar("Result")


class PushError(OSError):
    """A push failed. The message says why and what to type next; `__cause__` is the client's error."""


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: `namespace/name`, or `name` in the namespace of the token's owner.
        token: an access token. `None` takes the one in HF_TOKEN or stored by `hf auth login`.
        revision: a branch; `None` is main.
        private: visibility of a repository that has to be created; `None` leaves it to the Hub.
    """

    repo_id: str
    token: str | None = None
    revision: str | None = None
    private: bool | None = None


def ensure_destination(to: Destination) -> str:
    """Check token, repository name and namespace, and create the repository and the branch if they do not exist.

    Called before training, so that a push does not fail for a reason that was known hours earlier. No file is sent.

    Returns:
        The full `namespace/name`.

    Raises:
        PushError: in one line, what is wrong and how to fix it.
    """
    _check_offline(to)
    api = HfApi(token=to.token)
    repo_id = _full_repo_id(api, to)
    with_retries(lambda: api.create_repo(repo_id, private=to.private, exist_ok=True), f"creating {repo_id}", to)
    _warn_of_other_visibility(api, repo_id, to)
    if to.revision not in (None, "main"):
        branch = str(to.revision)
        with_retries(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), f"creating branch {branch}", to)
    return repo_id


def push_folder(folder: str | Path, to: Destination, message: str = "End of training", create_pr: bool = False) -> Any:
    """Push a folder in one commit, without checkpoints and pickles (`training_args.bin`, `optimizer.pt`).

    Args:
        folder: of a saved model; other subfolders are pushed too.
        to: the repository and branch.
        message: commit message.
        create_pr: open a pull request instead of committing to the branch.

    Returns:
        `huggingface_hub.CommitInfo`.

    Raises:
        PushError: the push failed. The folder is unchanged; the next push sends only what is missing.
    """
    if not (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file():
        raise PushError(
            f"{folder} has neither config.json nor adapter_config.json: give the folder of a saved model, such as the "
            "output_dir of a training run"
        )
    reason = why_no_weights(folder)
    if reason:
        raise PushError(f"{folder}: {reason}")
    repo_id = ensure_destination(to)
    retry_command = f"maxsup-hf push {folder} {repo_id}"
    if to.revision:
        retry_command += f" --revision {to.revision}"
    api = HfApi(token=to.token)
    return with_retries(
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
        retry_command,
    )


def with_retries(call: Callable[[], Result], action: str, to: Destination, retry_command: str = "") -> Result:
    """Call, and call again as long as the error may be transient.

    Args:
        call: the request.
        action: what it does, for messages ("pushing … to …").
        to: its destination, whose token is kept out of every message.
        retry_command: the command that pushes the saved model later.

    Raises:
        PushError: the error is permanent, or the last of `ATTEMPTS` failed.
    """
    attempts = 0
    while True:
        attempts += 1
        try:
            return call()
        except Exception as error:  # the client raises its own errors, those of its HTTP library and of json
            reason = f"{action} failed: {_reason(error)}"
            if attempts == ATTEMPTS or not _is_transient(error):
                later = f"; the saved model is unchanged: `{retry_command}` pushes it" if retry_command else ""
                raise PushError(_without(to.token, reason + _hint(error) + later)) from error
            pause = min(LONGEST_PAUSE, _retry_after(error) or 2.0 ** (attempts - 1))
            logger.warning("%s", _without(to.token, f"{reason}; trying again in {pause:g} s"))
            time.sleep(pause)


def _check_offline(to: Destination) -> None:
    """What can be checked without a request."""
    try:
        validate_repo_id(to.repo_id)
    except HFValidationError as error:
        raise PushError(
            f"{to.repo_id!r} is not a valid repository name, expected NAME or NAMESPACE/NAME: {_one_line(error)}"
        ) from error
    if constants.is_offline_mode():
        raise PushError(
            "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it, or push later with `maxsup-hf push`"
        ) from OfflineModeIsEnabled("HF_HUB_OFFLINE")
    if (to.token or get_token()) is None:
        raise PushError("there is no token for the Hub: run `hf auth login` with a token of the role write, or set HF_TOKEN")


def _full_repo_id(api: HfApi, to: Destination) -> str:
    """`namespace/name`, after checking that the token may write there."""
    user = with_retries(api.whoami, "checking the token", to)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError(
            f"the token of {user['name']} has the role read: create one with the role write, and run `hf auth login` again"
        )
    namespace, _, name = to.repo_id.rpartition("/")
    namespace = namespace or user["name"]
    writable = [user["name"], *(organisation["name"] for organisation in user.get("orgs", []))]
    if namespace not in writable:
        raise PushError(
            f"{user['name']} cannot push to the namespace {namespace!r}, only to {', '.join(writable)}: change the "
            "repository name, or log in as a member of that organisation"
        )
    return f"{namespace}/{name}"


def _warn_of_other_visibility(api: HfApi, repo_id: str, to: Destination) -> None:
    """An existing repository keeps its visibility: making it public could publish what was meant to stay private."""
    if to.private is None:
        return
    is_private = with_retries(lambda: api.repo_info(repo_id), f"reading the visibility of {repo_id}", to).private
    if is_private != to.private:
        wanted = _visibility(to.private)
        logger.warning(
            "%s already exists and is %s, but %s was requested; its visibility is left as it is. `hf repo settings %s --%s` "
            "changes it.", repo_id, _visibility(is_private), wanted, repo_id, wanted,
        )  # fmt: skip


def _status(error: BaseException) -> int | None:
    if not isinstance(error, HfHubHTTPError):
        return None
    return getattr(error.response, "status_code", None)


def _is_transient(error: BaseException) -> bool:
    """A status that may pass, a broken connection, or an HTML page where JSON was expected."""
    status = _status(error)
    if status is not None:
        return status in TRANSIENT
    if isinstance(error, (json.JSONDecodeError, ConnectionError, TimeoutError)):
        return True
    return type(error).__module__.partition(".")[0].startswith("http")  # http.client, httpx, httpcore


def _reason(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return "the Hub answered with something that is not JSON"
    return f"{_status(error) or type(error).__name__}: {_one_line(error)[:300]}"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _hint(error: BaseException) -> str:
    hints = {
        401: "; run `hf auth login` with a valid token",
        403: "; the token needs the role write in that namespace: run `hf auth login` with such a token",
        404: "; check the repository name and what the token has access to",
    }
    return hints.get(_status(error) or 0, "")


def _retry_after(error: BaseException) -> float | None:
    """Seconds to wait according to Retry-After, which is a number of seconds or a date."""
    value = getattr(getattr(error, "response", None), "headers", {}).get("Retry-After")
    if value is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError):
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    return None


def _without(token: str | None, message: str) -> str:
    return message.replace(token, "<token>") if token else message


def _visibility(private: bool | None) -> str:
    return "private" if private else "public"
