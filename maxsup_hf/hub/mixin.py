"""Pushing from the Trainer: the destination is checked before training, and failed pushes are reported and repeated."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from concurrent.futures import Future, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import CommitInfo, HfApi, constants
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from maxsup_hf.hub.card import read_card, write_card
from maxsup_hf.hub.push import Destination, PushError, ensure_destination, push, push_checkpoint
from maxsup_hf.hub.record import record, write_record
from maxsup_hf.hub.retries import Deadline
from maxsup_hf.hub.staging import size
from maxsup_hf.hub.values import as_list, one_or_all

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


def destination(
    args: Any, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> Destination:
    """The destination in the training arguments; the other arguments override them."""
    return Destination(
        repo_id=args.hub_model_id or Path(args.output_dir).absolute().name,
        token=args.hub_token if token is None else token,
        revision=args.hub_revision if revision is None else revision,
        private=args.hub_private_repo if private is None else private,
        timeout=args.push_timeout,
    )


class HubMixin(_Base):
    """What `MaxSupMixin` does with `push_to_hub`, `hub_strategy` and `hub_revision`.

    When the Trainer is created, the token and its role are checked, and repository and branch are created if they do not
    exist. If a background push fails, a warning says so at once, and `train()` ends with a push that makes up for it. With
    HF_HUB_OFFLINE the model is trained without pushing.

    Attributes:
        pushes_after_training: whether `train()` ends with a push; a caller that pushes later itself sets it to `False`.

    Raises:
        PushError: (on creation, and from `push_to_hub`) in one line, what is wrong and what to type.
    """

    hub_model_id: Any
    push_in_progress: Any
    _pushed_to: str | None = None  # the repository of the last push
    pushes_after_training = True

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if not self.is_world_process_zero():
            return
        self.push_in_progress = None
        self._failed_pushes: list[BaseException] = []
        self._give_up = threading.Event()  # ends the pushes in the background
        to = destination(self.args, token, private)
        card = Path(str(self.args.output_dir)) / "README.md"
        if card.is_file():
            read_card(card)  # every push would fail at a card that the Hub rejects
        if constants.is_offline_mode() and self.args.push_to_hub:
            self.args.push_to_hub = False
            logger.warning(
                "HF_HUB_OFFLINE is set: training without pushing. To push later: `maxsup-hf push %s %s`.",
                self.args.output_dir, to.repo_id,
            )  # fmt: skip
            return
        self.hub_model_id = ensure_destination(to)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push and strategy != HubStrategy.ALL_CHECKPOINTS:
            return  # the next push, or the last one, brings the Hub up to date
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        try:
            job = self._start_push(Path(checkpoint_folder))
        except OSError as error:  # the links, or copies on a full disk
            self._report_failure(error)
            return
        job.add_done_callback(lambda job: self._report_failure(job.exception()))
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]

    def _start_push(self, checkpoint: Path) -> Future:
        step = self.state.global_step
        # Rotation may delete the checkpoint before it is pushed, so links to its files are pushed instead.
        snapshot = Path(str(self.args.output_dir)) / f"_push-{step}"
        shutil.rmtree(snapshot, ignore_errors=True)
        try:
            shutil.copytree(checkpoint, snapshot, copy_function=_link)
        except OSError:
            shutil.rmtree(snapshot, ignore_errors=True)
            raise
        to = destination(self.args)
        # The model goes to the root of the repository; with these strategies the complete checkpoint is pushed as well.
        folders = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: checkpoint.name}
        inside = folders.get(self.args.hub_strategy)  # type: ignore[call-overload]
        give_up = self._give_up

        def push_snapshot() -> None:
            try:
                deadline = Deadline(to.timeout, size(snapshot), give_up)
                push_checkpoint(snapshot, self.hub_model_id, to, step, inside, deadline)
            finally:
                shutil.rmtree(snapshot, ignore_errors=True)

        return HfApi(token=to.token).run_as_future(push_snapshot)

    def _report_failure(self, error: BaseException | None) -> None:
        if error is not None:
            self._failed_pushes.append(error)
            logger.warning("%s. Training continues, and the last push makes up for it.", error)

    def _push_at_the_end(self) -> None:
        """After training, push the final state, whether or not the pushes before it succeeded."""
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END or not self.pushes_after_training:
            return
        try:
            self.push_to_hub()
        except PushError as error:  # the model is saved, so the training does not fail
            logger.error("%d pushes failed during training, and the last one too: %s", len(self._failed_pushes), error)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write `run.json`, and the card from it. Arguments as in `transformers.Trainer.create_model_card`.

        Raises:
            ValueError: the folder has a README that is not a valid card; it is left unchanged.
        """
        if not self.is_world_process_zero():
            return
        recorded = record(
            self,
            language=language,
            license=license,
            tags=as_list(tags),
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=one_or_all(tasks),
            dataset_tags=one_or_all(dataset_tags),
            dataset=one_or_all(dataset),
            dataset_args=one_or_all(dataset_args),
        )
        write_record(str(self.args.output_dir), recorded)
        write_card(str(self.args.output_dir))

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push `output_dir` in one commit: model, card, figures, results and the state of the loss.

        Args:
            commit_message: the commit message.
            blocking: wait for the push; otherwise return a `Future`.
            token, revision, private: override the training arguments.
            **kwargs: passed to `create_model_card`.

        Returns:
            `huggingface_hub.CommitInfo`, or a `Future` of it; `None` on all processes but the main one.

        Raises:
            PushError: the push failed; the message has the command that tries again.
        """
        self.save_model(_internal_call=True)
        self.save_loss(self.args.output_dir)  # type: ignore[attr-defined]
        if not self.is_world_process_zero():
            return None
        tags = as_list(kwargs.pop("tags", None))
        tags += [tag for tag in as_list(getattr(self.model, "model_tags", None)) if tag not in tags]
        to = destination(self.args, token, private, revision)
        self._pushed_to = to.repo_id
        kwargs.setdefault("model_name", to.repo_id.rpartition("/")[2])
        self.create_model_card(tags=tags, **kwargs)
        deadline = Deadline(to.timeout, size(str(self.args.output_dir)))
        if self.hub_model_id is not None:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self._finish_background_pushes(deadline)

        def push_result() -> CommitInfo:
            return push(str(self.args.output_dir), to, commit_message or "End of training", deadline=deadline).info

        return push_result() if blocking else HfApi(token=to.token).run_as_future(push_result)

    def _finish_background_pushes(self, deadline: Deadline) -> None:
        """Wait for the pushes of checkpoints, and give up those that are not done at the deadline."""
        if self.push_in_progress is None:
            return
        jobs = self.push_in_progress.jobs
        if wait(jobs, timeout=deadline.left()).not_done:
            self._give_up.set()
            wait(jobs)
            self._give_up = threading.Event()
        self.push_in_progress = None


def _link(source: str, target: str) -> None:
    """Hard-link a file, or copy it if the file system has no links. A checkpoint's files never change once they are written,
    so a link is as good as a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
