"""Train or fine-tune a model that answers questions with a span of a given context.

Without arguments: a tiny transformer that finds the name of the right kind in a list. Nothing is downloaded.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForQuestionAnswering, DataCollatorWithPadding, EvalPrediction

from maxsup_hf.data.answers import SQUAD_FORMATS, answer_metrics, check_answers, cut_into_windows, is_squad, predict_answers
from maxsup_hf.data.arguments import flag
from maxsup_hf.data.builtin_names import questions_about_names
from maxsup_hf.data.columns import find_column, is_string, read_texts, report_columns
from maxsup_hf.data.labels import set_aside_unlabelled
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import hold_out_groups, limit_rows
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.models import build_model, load_config
from maxsup_hf.scripts.common.tokenizers import TextArguments, set_up_text_task
from maxsup_hf.trainer.trainer import MaxSupTrainer

logger = logging.getLogger(__name__)

TASK = "question-answering"
BUILTIN = {**recipes.BUILTIN, "per_device_train_batch_size": 16}
QUESTION_NAMES = ("question", "query")
CONTEXT_NAMES = ("context", "passage", "paragraph", "document", "text")
ANSWER_NAMES = ("answers", "answer", "label")


@dataclass
class QuestionAnsweringArguments(TextArguments):
    """Flags of question answering."""

    question_column_name: str | None = flag("Column of the questions (default: found by its type or name).")
    context_column_name: str | None = flag("Column of the texts with the answers (default: found by its type or name).")
    label_column_name: str | None = flag(
        "Column of the answers: strings, whose first occurrence in the context is meant, or the lists text and "
        "answer_start as in SQuAD; empty if the context has no answer (default: found by its type or name)."
    )
    max_seq_length: int | None = flag(
        "Maximum length of question and context in tokens; a longer context is cut into windows (default: what the model "
        "takes, else 512)."
    )
    doc_stride: int | None = flag(
        "Tokens that neighbouring windows of a long context share (default: a quarter of a window)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.doc_stride is not None and self.doc_stride < 0:
            raise ValueError(f"doc_stride must be at least 0 tokens, got {self.doc_stride}")


class AnswerTrainer(MaxSupTrainer):
    """Evaluates the texts of the answers, for which the metrics need columns that the model does not get."""

    may_be_none = False

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        self.compute_metrics = partial(metrics, dataset=dataset, may_be_none=self.may_be_none)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> SequentialSampler:
        return SequentialSampler(eval_dataset)  # windows in order, even if training groups them by length


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(QuestionAnsweringArguments, argv, TASK, recipes.TEXTS._replace(builtin=BUILTIN))
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits = _load_questions(args)
        _, first = first_split(splits)
        may_be_none = -1 in first.unique("start")
        texts = read_texts(first, ["question", "context"])
        tokenizer, config, length = set_up_text_task(args, config, texts, offsets=True)
        tokenizer.padding_side = "right"  # answers are positions, which padding on the left would shift
        stride = length // 4 if args.doc_stride is None else args.doc_stride
        rows = splits
        splits = {split: cut_into_windows(dataset, tokenizer, length, stride, split) for split, dataset in rows.items()}
        _report_windows(rows, splits, length)
    config.num_labels = 2  # start and end
    model = build_model(AutoModelForQuestionAnswering, config, args, training_args.seed)
    trainer = AnswerTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        preprocess_logits_for_metrics=_both_ends,
    )
    trainer.may_be_none = may_be_none
    return run.make_job(
        args, trainer, splits, TASK, "questions about names in 20 languages, Unicode CLDR",
        rows=rows, question_column_name="question", context_column_name="context", label_column_name="texts",
        max_seq_length=length, allow_no_answer=may_be_none,
    )  # fmt: skip


def _load_questions(args: QuestionAnsweringArguments) -> Splits:
    splits = load_splits(args, questions_about_names, formats=SQUAD_FORMATS)
    first, rows = first_split(splits)
    answers = find_column(rows, "label_column_name", args.label_column_name, fits=is_squad, names=ANSWER_NAMES, split=first)
    question = find_column(
        rows, "question_column_name", args.question_column_name, fits=is_string, names=QUESTION_NAMES, taken=[answers],
        split=first,
    )  # fmt: skip
    context = find_column(
        rows, "context_column_name", args.context_column_name, fits=is_string, names=CONTEXT_NAMES,
        taken=[answers, question], split=first,
    )  # fmt: skip
    report_columns(rows, [question, context, answers])
    splits = set_aside_unlabelled(splits, args, answers, {question: "question", context: "context"})
    splits = {split: check_answers(dataset, question, context, answers, split) for split, dataset in splits.items()}
    return limit_rows(hold_out_groups(splits, args.train_val_split, "context"), args)


def _report_windows(rows: Splits, windows: Splits, length: int) -> None:
    for split, dataset in rows.items():
        longer = len(dataset) - sum(count == 1 for count in Counter(windows[split]["row"]).values())
        logger.info(
            "%s data: %d of %d contexts (%.1f%%) are longer than max_seq_length=%d tokens and are cut into windows",
            split, longer, len(dataset), 100 * longer / len(dataset), length,
        )  # fmt: skip


def metrics(prediction: EvalPrediction, dataset: Dataset, may_be_none: bool) -> dict[str, float]:
    """Exact match and F1 of the answers predicted from the logits of all windows of a data set."""
    logits: Any = prediction.predictions
    start_logits, end_logits = logits
    return answer_metrics(predict_answers(start_logits, end_logits, dataset, may_be_none), dataset)


def _both_ends(outputs: Any, labels: Any) -> Any:
    """`preprocess_logits_for_metrics`: keep the two logits only, as `run.only_logits` does for one."""
    return outputs[:2]


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train question-answering`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
