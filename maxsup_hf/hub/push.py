"""Push a folder to the Hub: check token and repository first, and send all files in one commit."""

from __future__ import annotations

import logging
import re
import shlex
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitInfo, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from maxsup_hf.hub.record import why_no_weights
from maxsup_hf.hub.retries import Deadline, PushError, UnexpectedAnswer, masked_message, with_retries
from maxsup_hf.hub.staging import check_weights, size, staged
from maxsup_hf.output.secrets import masked, secret

__all__ = ["Destination", "Pushed", "ensure_destination", "push", "push_checkpoint", "push_folder"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Destination:
    """Where to push.

    Attributes:
        repo_id: `namespace/name`, or `name` in the namespace of the token's owner.
        token: an access token. `None` takes the one in HF_TOKEN or stored by `hf auth login`.
        revision: a branch, or `refs/pr/N` of an open pull request; `None` is main.
        private: visibility of a repository that has to be created; `None` leaves it to the Hub.
        timeout: seconds that a push may take in all, see `Deadline`.
    """

    repo_id: str
    token: str | None = field(default=None, repr=False)
    revision: str | None = None
    private: bool | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", secret(self.token))

    @property
    def is_pull_request(self) -> bool:
        """Whether the revision is that of an open pull request."""
        return re.fullmatch(r"refs/pr/\d+", self.revision or "") is not None


class Pushed(NamedTuple):
    """Result of a push: the commit, and whether it was made or the repository had all files before."""

    info: CommitInfo
    changed: bool


def ensure_destination(to: Destination, create_pr: bool = False, deadline: Deadline | None = None) -> str:
    """Check token, repository name and namespace, and create the repository and the branch if they do not exist.

    Called before training, so that a push does not fail for a reason that was known hours earlier. No file is sent. For a
    pull request, the repository may be somebody else's, and must exist.

    Returns:
        The full `namespace/name`.

    Raises:
        PushError: in one line, what is wrong and how to fix it.
    """
    deadline = deadline or Deadline(to.timeout)
    _check_offline(to)
    api = HfApi(token=to.token)
    repo_id, is_own = _full_repo_id(api, to, create_pr or to.is_pull_request, deadline)
    if is_own and not to.is_pull_request:
        with_retries(lambda: api.create_repo(repo_id, private=to.private, exist_ok=True), f"creating {repo_id}", deadline)
    _check_visibility(api, repo_id, to, deadline)
    if to.is_pull_request:
        _head(api, repo_id, to.revision, deadline)  # a 404 if it does not exist
    elif is_own and to.revision not in (None, "main"):
        branch = str(to.revision)
        with_retries(lambda: api.create_branch(repo_id, branch=branch, exist_ok=True), f"creating branch {branch}", deadline)
    return repo_id


def push_folder(
    folder: str | Path, to: Destination, message: str = "End of training", create_pr: bool = False
) -> CommitInfo:
    """`push`, for its commit."""
    return push(folder, to, message, create_pr).info


def push(
    folder: str | Path,
    to: Destination,
    message: str = "End of training",
    create_pr: bool = False,
    deadline: Deadline | None = None,
) -> Pushed:
    """Push a folder in one commit, without checkpoints, pickles (`training_args.bin`, `optimizer.pt`), logs and tables.

    A card that this library wrote names the repository. Absolute paths in the card and in settings become
    names.

    Args:
        folder: of a saved model; other subfolders are pushed too.
        to: the repository and branch.
        message: commit message.
        create_pr: open a pull request instead of committing to the branch. With the revision of an open pull request, the
            commit is added to that one.
        deadline: shared with other requests. Default: that of `to.timeout`, from now.

    Raises:
        PushError: the push failed, the weights are missing or damaged, or a file contains a token. The folder is
            unchanged; the next push sends only what is missing.
    """
    if not (Path(folder) / "config.json").is_file() and not (Path(folder) / "adapter_config.json").is_file():
        raise PushError(
            f"{folder} has neither config.json nor adapter_config.json: give the folder of a saved model, such as the "
            "output_dir of a training run"
        )
    reason = why_no_weights(folder)
    if reason:
        raise PushError(f"{folder}: {reason}")
    check_weights(Path(folder))
    deadline = deadline or Deadline(to.timeout, size(folder))
    create_pr = create_pr and not to.is_pull_request
    checking = Deadline() if to.timeout is None else deadline  # which takes seconds, whatever the size
    checking.later = deadline.later = _command(folder, to, create_pr)
    repo_id = ensure_destination(to, create_pr, checking)
    with staged(folder, repo_id) as stage:
        pushed = _upload(stage, repo_id, to, message, deadline, f"pushing {folder} to {repo_id}", create_pr)
    if not pushed.changed:
        logger.info("no change: %s already has these files", repo_id)
    return pushed


def push_checkpoint(
    snapshot: Path, repo_id: str, to: Destination, step: int, checkpoint: str | None, deadline: Deadline
) -> None:
    """Push the model of a checkpoint to the root of the repository, in one commit.

    Args:
        snapshot: folder of the checkpoint.
        step: of the training.
        checkpoint: folder of the repository that gets the complete checkpoint, or `None`.

    Raises:
        PushError: as `push`.
    """
    with staged(snapshot, repo_id, checkpoint) as stage:
        _upload(stage, repo_id, to, f"Training in progress, step {step}", deadline, f"pushing step {step} to {repo_id}")


def _upload(
    stage: Path, repo_id: str, to: Destination, message: str, deadline: Deadline, action: str, create_pr: bool = False
) -> Pushed:
    api = HfApi(token=to.token)
    before = _head(api, repo_id, to.revision, deadline)

    def upload() -> CommitInfo:
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=str(stage),
            commit_message=message,
            revision=to.revision,
            create_pr=create_pr,
        )

    info = with_retries(upload, action, deadline)
    return Pushed(info, changed=not info.commit_url.endswith(f"/commit/{before}"))


def _head(api: HfApi, repo_id: str, revision: str | None, deadline: Deadline) -> str | None:
    """The last commit of a revision."""
    info = with_retries(lambda: api.repo_info(repo_id, revision=revision), f"reading {repo_id}", deadline)
    return getattr(info, "sha", None)


def _command(folder: str | Path, to: Destination, create_pr: bool) -> str:
    """The command that pushes later."""
    words = ["maxsup-hf", "push", str(folder), to.repo_id]
    words += ["--private"] if to.private else []
    words += ["--revision", to.revision] if to.revision else []
    words += ["--create-pr"] if create_pr else []
    return shlex.join(words)


def _check_offline(to: Destination) -> None:
    """What can be checked without a request."""
    if to.revision == "":  # as an unset variable of a shell
        raise PushError("revision is empty; give it a value, or leave it out")
    for name, value in {"repository name": to.repo_id, "revision": to.revision or ""}.items():
        if masked(value) != value:  # such as arguments in the wrong order
            raise PushError(f"the {name} is or has a token, which everybody would see: nothing was sent")
    try:
        validate_repo_id(to.repo_id)
    except HFValidationError as error:
        raise PushError(
            f"{to.repo_id!r} is not a valid repository name, expected NAME or NAMESPACE/NAME: {masked_message(error)}"
        ) from error
    if constants.is_offline_mode():
        raise PushError(
            "HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it, or push later with `maxsup-hf push`"
        ) from OfflineModeIsEnabled("HF_HUB_OFFLINE")
    if secret(to.token or get_token()) is None:
        raise PushError(
            "there is no token for the Hub: run `hf auth login` with a token that has the role write, or set HF_TOKEN"
        )


def _full_repo_id(api: HfApi, to: Destination, for_pull_request: bool, deadline: Deadline) -> tuple[str, bool]:
    """`namespace/name` and whether the token may write there, after checking that it may push."""
    user = with_retries(partial(_user, api), "checking the token", deadline)
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise PushError(
            f"the token of {user['name']} has the role read: create one with the role write, and run `hf auth login` again"
        )
    namespace, _, name = to.repo_id.rpartition("/")
    namespace = namespace or user["name"]
    writable = [user["name"], *(organisation["name"] for organisation in user.get("orgs") or [])]
    if namespace not in writable and not for_pull_request:
        raise PushError(
            f"{user['name']} cannot push to the namespace {namespace!r}, only to {', '.join(writable)}: change the "
            "repository name, log in as a member of that organisation, or propose the files with "
            "`maxsup-hf push DIR REPO --create-pr`"
        )
    return f"{namespace}/{name}", namespace in writable


def _user(api: HfApi) -> dict[str, Any]:
    """The owner of the token."""
    user = api.whoami()
    if not isinstance(user, dict) or "name" not in user:
        raise UnexpectedAnswer
    return user


def _check_visibility(api: HfApi, repo_id: str, to: Destination, deadline: Deadline) -> None:
    """An existing repository keeps its visibility, so what is to be private is not pushed to a public one.

    Raises:
        PushError: `to.private` is set, and the repository is public.
    """
    if to.private is None:
        return
    is_private = with_retries(lambda: api.repo_info(repo_id), f"reading the visibility of {repo_id}", deadline).private
    if to.private and not is_private:
        raise PushError(
            f"{repo_id} already exists and is public, but private was requested, so nothing was pushed: name another "
            f"repository, or make this one private with `hf repo settings {repo_id} --private`"
        )
    if is_private and not to.private:
        logger.warning(
            "%s already exists and is private, but public was requested; its visibility is left as it is. "
            "`hf repo settings %s --public` changes it.", repo_id, repo_id,
        )  # fmt: skip
