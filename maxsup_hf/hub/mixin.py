"""The Trainer's way to the Hub: checked before anything is trained, never silent about a push that failed."""

from __future__ import annotations

import logging
import os
import shutil
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi, constants
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress

from maxsup_hf.hub.card import read_card, write_card
from maxsup_hf.hub.push import NOT_PUSHED, Destination, PushError, attempt, prepare, push_folder
from maxsup_hf.hub.record import RECORD, record
from maxsup_hf.output.files import write_json

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object


def destination(
    args: Any, token: str | None = None, private: bool | None = None, revision: str | None = None
) -> Destination:
    """Where the training arguments say that the model goes."""
    return Destination(
        repo_id=args.hub_model_id or Path(args.output_dir).absolute().name,
        token=args.hub_token if token is None else token,
        revision=args.hub_revision if revision is None else revision,
        private=args.hub_private_repo if private is None else private,
    )


class HubMixin(_Base):
    """What `MaxSupMixin` does with `push_to_hub`, `hub_strategy` and `hub_revision`.

    The token, its role, the repository and the branch are checked, and the latter made, when the Trainer is made. A push in
    the background that fails is warned of at once, and `train()` ends with a push of its own that makes up for it. With
    HF_HUB_OFFLINE training goes on without the Hub. The token is in no file: arguments are pickled without it.

    Raises:
        PushError: (when made, and from `push_to_hub`) in one line what is wrong and what to type.
    """

    hub_model_id: Any
    push_in_progress: Any

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        if not self.is_world_process_zero():
            return
        self.push_in_progress = None
        self._failed_pushes: list[BaseException] = []
        to = destination(self.args, token, private)
        card = Path(str(self.args.output_dir)) / "README.md"
        if card.is_file():
            read_card(card)  # a card that the Hub refuses would fail every push
        if constants.is_offline_mode() and self.args.push_to_hub:
            self.args.push_to_hub = False
            logger.warning(
                "HF_HUB_OFFLINE is set: training without pushing. `maxsup-hf push %s %s` does so later.",
                self.args.output_dir, to.repo_id,
            )  # fmt: skip
            return
        self.hub_model_id = prepare(to)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push a checkpoint in the background, from links of its own: rotation may delete the checkpoint meanwhile."""
        strategy = self.args.hub_strategy
        if not self.is_world_process_zero() or strategy == HubStrategy.END:
            return
        busy = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if busy and not self.args.hub_always_push and strategy != HubStrategy.ALL_CHECKPOINTS:
            return  # the next one, or the last push, carries what this one would
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        step = self.state.global_step
        snapshot = Path(str(self.args.output_dir)) / f"_push-{step}"
        shutil.rmtree(snapshot, ignore_errors=True)
        shutil.copytree(checkpoint_folder, snapshot, copy_function=_link)
        places: list[tuple[str | None, list[str]]] = [(None, NOT_PUSHED)]
        if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            places.append(
                ("last-checkpoint" if strategy == HubStrategy.CHECKPOINT else Path(checkpoint_folder).name, ["_*"])
            )
        to = destination(self.args)
        api = HfApi(token=to.token)
        upload = partial(
            api.upload_folder, repo_id=self.hub_model_id, folder_path=str(snapshot), revision=to.revision,
            commit_message=f"Training in progress, step {step}",
        )  # fmt: skip

        def push() -> None:
            try:
                for place, left_out in places:
                    call = partial(upload, path_in_repo=place, ignore_patterns=left_out)
                    attempt(call, f"pushing step {step}", to)
            finally:
                shutil.rmtree(snapshot, ignore_errors=True)

        job = api.run_as_future(push)
        job.add_done_callback(self._note)
        if busy:
            self.push_in_progress.jobs.append(job)
        else:
            self.push_in_progress = PushInProgress([job])  # type: ignore[arg-type]

    def _note(self, job: Future) -> None:
        error = job.exception()
        if error is not None:
            self._failed_pushes.append(error)
            logger.warning("%s. Training goes on; the last push makes up for it.", error)

    def _push_at_the_end(self) -> None:
        """After training: whatever the pushes before it came to, the Hub gets the last state."""
        if not self.args.push_to_hub or self.args.hub_strategy == HubStrategy.END:
            return
        try:
            self.push_to_hub()
        except PushError as error:
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
        """Write `run.json`, and the card from it; arguments as in `transformers.Trainer.create_model_card`.

        Raises:
            ValueError: the folder has a README that cannot be read as a card; it is left as it is.
        """
        if not self.is_world_process_zero():
            return

        def one(value: Any) -> Any:
            return value[0] if isinstance(value, list) and len(value) == 1 else value

        found = record(
            self,
            language=language,
            license=license,
            tags=[tags] if isinstance(tags, str) else tags,
            model_name=model_name,
            finetuned_from=finetuned_from,
            tasks=one(tasks),
            dataset_tags=one(dataset_tags),
            dataset=one(dataset),
            dataset_args=one(dataset_args),
        )
        write_json(Path(str(self.args.output_dir)) / RECORD, found)
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
        """Push what is in `output_dir`: model, card, figures, results and what the loss remembers, in one commit.

        Args:
            commit_message: of the commit.
            blocking: wait for it; otherwise return a `Future`.
            token, revision, private: instead of those of the training arguments.
            **kwargs: for `create_model_card`.

        Returns:
            `huggingface_hub.CommitInfo`, or a `Future` of it; `None` on other processes than the main one.

        Raises:
            PushError: it did not happen; the message has the command that tries again.
        """
        self.save_model(_internal_call=True)
        self.save_loss(self.args.output_dir)  # type: ignore[attr-defined]
        if not self.is_world_process_zero():
            return None
        model_tags = getattr(self.model, "model_tags", None) or []
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        to = destination(self.args, token, private, revision)
        kwargs.setdefault("model_name", to.repo_id.rpartition("/")[2])
        self.create_model_card(tags=[*tags, *(tag for tag in model_tags if tag not in tags)], **kwargs)
        if self.hub_model_id is not None:
            self.callback_handler.on_push_begin(self.args, self.state, self.control)
            self._finish_current_push()
        call = (str(self.args.output_dir), to, commit_message or "End of training")
        return push_folder(*call) if blocking else HfApi(token=to.token).run_as_future(push_folder, *call)


def _link(source: str, target: str) -> None:
    """A hard link where the file system has them: a checkpoint is not copied, and its files are never written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
