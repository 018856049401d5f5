"""Train or fine-tune a model that picks one of several choices.

Without arguments: a tiny transformer that picks the only name of a given kind. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import AutoModelForMultipleChoice, DataCollatorForMultipleChoice, PreTrainedTokenizerBase

from maxsup_hf.data.arguments import flag
from maxsup_hf.data.builtin_names import choices_of_names
from maxsup_hf.data.choices import check_choices, find_choice_columns, usual_layout
from maxsup_hf.data.columns import read_texts, report_columns
from maxsup_hf.data.labels import without_hidden_test
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import hold_out_and_limit
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.models import build_model, load_config
from maxsup_hf.scripts.common.tokenizers import TextArguments, report_cut, set_up_text_task, with_cut
from maxsup_hf.trainer.trainer import MaxSupTrainer

TASK = "multiple-choice"
BUILTIN = {**recipes.BUILTIN, "num_train_epochs": 3, "per_device_train_batch_size": 16}


@dataclass
class MultipleChoiceArguments(TextArguments):
    """Flags of multiple choice."""

    question_column_name: str | None = flag(
        "Column of the questions, or of the beginnings that the choices continue (default: found by its type or name)."
    )
    choices_column_name: str | None = flag(
        "Column of the choices, a list in each row; or one column for each choice, comma-separated (default: found by its "
        "type or name)."
    )
    label_column_name: str | None = flag(
        "Column of the right choice: its index from 0, or its text (default: found by its type or name)."
    )


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    args, training_args = parse(MultipleChoiceArguments, argv, TASK, recipes.TEXTS._replace(builtin=BUILTIN))
    config = load_config(args)
    with training_args.main_process_first(desc="loading and tokenizing the data"):
        splits = _load_choices(args)
        texts = read_texts(first_split(splits)[1], ["question", "choices"])
        tokenizer, config, length = set_up_text_task(args, config, texts)
        rows = splits
        splits = {split: tokenize(dataset, tokenizer, length, split) for split, dataset in rows.items()}
    model = build_model(AutoModelForMultipleChoice, config, args, training_args.seed)
    trainer = MaxSupTrainer(
        model,
        training_args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        data_collator=DataCollatorForMultipleChoice(tokenizer),
        compute_metrics=run.classification_metrics,
        preprocess_logits_for_metrics=run.only_logits,
    )
    return run.make_job(
        args, trainer, splits, TASK, "choices of names in 20 languages, Unicode CLDR",
        rows=rows, question_column_name="question", choices_column_name="choices", label_column_name="labels",
        max_seq_length=length,
    )  # fmt: skip


def _load_choices(args: MultipleChoiceArguments) -> Splits:
    splits = {split: usual_layout(dataset, split) for split, dataset in load_splits(args, choices_of_names).items()}
    given = args.question_column_name, args.choices_column_name, args.label_column_name
    first, rows = first_split(splits)
    columns = find_choice_columns(rows, *given, first)
    question, choices, label = columns
    report_columns(rows, [question, *choices, label])
    if args.dataset_name is not None:
        splits = without_hidden_test(splits, columns[-1])
    return hold_out_and_limit(check_choices(splits, *columns), args, "labels")


def tokenize(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, length: int, split: str = "test") -> Dataset:
    """For each row, C lists of token ids: the question with each choice. If a pair is too long, its longer text is cut."""
    count = len(dataset[0]["choices"])

    def encode(batch: dict[str, list[Any]]) -> Any:
        questions = [question for question in batch["question"] for _ in range(count)]
        choices = [choice for row in batch["choices"] for choice in row]
        encoded = with_cut(tokenizer(questions, choices, truncation="longest_first", max_length=length), length)
        return {name: [values[i : i + count] for i in range(0, len(values), count)] for name, values in encoded.items()}

    unused = [name for name in dataset.column_names if name != "labels"]
    tokenized = dataset.map(encode, batched=True, remove_columns=unused, desc="tokenizing")
    return report_cut(tokenized, length, split)


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train multiple-choice`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
