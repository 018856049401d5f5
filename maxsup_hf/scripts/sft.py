"""Fine-tune a language model on chats, prompts or texts (SFT), by TRL, with LoRA if asked for.

Without arguments: a tiny Llama on prompts and completions. Nothing is downloaded.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset, Features
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from maxsup_hf.data.arguments import flag, no_flag
from maxsup_hf.data.builtin_texts import translated_phrases
from maxsup_hf.data.columns import identifier_columns, is_string
from maxsup_hf.data.conversations import as_conversations
from maxsup_hf.data.loading import Splits, first_split, load_splits
from maxsup_hf.data.splits import hold_out_and_limit
from maxsup_hf.scripts.common import recipes, run
from maxsup_hf.scripts.common.arguments import parse
from maxsup_hf.scripts.common.lm_tokenizers import build_generator_tokenizer
from maxsup_hf.scripts.common.models import build_model, load_config
from maxsup_hf.scripts.common.tokenizers import TextArguments
from maxsup_hf.scripts.language_modeling import default_llama

logger = logging.getLogger(__name__)

TASK = "sft"
VOCABULARY_SIZE = 1_000
DEFAULT_LENGTH = 128  # tokens, of the default model

COMMON = {"lr_scheduler_type": "cosine", "per_device_train_batch_size": 8, "per_device_eval_batch_size": 8}
FROM_SCRATCH = {**recipes.FROM_SCRATCH, **COMMON, "num_train_epochs": 4, "learning_rate": 2e-3, "max_length": DEFAULT_LENGTH}
BUILTIN = {**FROM_SCRATCH, "num_train_epochs": 2}
FINE_TUNING = {**recipes.FINE_TUNING, **COMMON, "learning_rate": 2e-5}
RECIPES = recipes.Recipes(BUILTIN, FROM_SCRATCH, FINE_TUNING)

# A chat template for a tokenizer that was trained here and has none.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token + '\\n' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + eos_token + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@dataclass
class SFTArguments(TextArguments):
    """Flags of supervised fine-tuning, beside TRL's."""

    use_peft: bool = flag("Train a LoRA adapter in place of all weights (needs peft).", False)
    lora_r: int = flag("Rank of the LoRA adapter.", 16)
    lora_alpha: int = flag("Scale of the LoRA adapter.", 32)
    lora_dropout: float = flag("Dropout of the LoRA adapter.", 0.05)
    lora_target_modules: str | None = flag("Comma-separated layers to adapt, or all-linear (default: peft's choice).")
    load_in_4bit: bool = flag("Quantise the model to 4 bits, for QLoRA (needs bitsandbytes).", False)
    load_in_8bit: bool = flag("Quantise the model to 8 bits (needs bitsandbytes).", False)
    label_column_name: str | None = no_flag()
    max_seq_length: int | None = no_flag()  # TRL calls it max_length
    trust_remote_code: bool = no_flag()  # TRL's arguments have it

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.load_in_4bit or self.load_in_8bit) and not self.use_peft:
            raise ValueError("load_in_4bit and load_in_8bit need use_peft: a quantised model is trained by an adapter alone")
        if self.lora_r < 1 or not 0 <= self.lora_dropout < 1:
            raise ValueError(
                f"lora_r must be at least 1, and lora_dropout at least 0 and less than 1, got {self.lora_r} and "
                f"{self.lora_dropout:g}"
            )
        for wanted, package in ((self.use_peft, "peft"), (self.load_in_4bit or self.load_in_8bit, "bitsandbytes")):
            if wanted and find_spec(package) is None:
                raise ValueError(f"{package} is not installed: pip install {package}")


def prepare(argv: Sequence[str] | None = None) -> run.Job:
    """Read and check everything that a run needs.

    Raises:
        ValueError, TypeError, OSError: bad input; nothing was written.
    """
    if find_spec("trl") is None:
        raise ValueError("supervised fine-tuning needs TRL: pip install trl")
    from maxsup_hf.scripts.common.trl_classes import MaxSupSFTConfig, MaxSupSFTTrainer

    args, training_args = parse(SFTArguments, argv, TASK, RECIPES, MaxSupSFTConfig)
    args.trust_remote_code = training_args.trust_remote_code
    template = training_args.chat_template_path
    if template is not None and template.endswith((".jinja", ".jinja2")) and not os.path.isfile(template):
        raise FileNotFoundError(f"chat_template_path: there is no file {template!r}")
    unused = [name for name in args.settings if name.startswith("lora_")]
    if unused and not args.use_peft:
        raise ValueError(f"{unused[0]} needs --use_peft true, without which no adapter is trained")
    if args.use_peft and args.model_name_or_path is None:
        logger.warning(
            "use_peft without --model_name_or_path: the adapter is trained on random weights, which are not saved with it, "
            "so that it cannot be used afterwards"
        )
    config = load_config(args)
    with training_args.main_process_first(desc="loading the data"):
        splits = _load_conversations(args)
        rows = {}
        if "test" in splits:
            rows = {"test": _as_chats(splits["test"])}
            splits["test"] = splits["test"].remove_columns(identifier_columns(splits["test"]))
        split, first = first_split(splits)
        tokenizer = build_generator_tokenizer(args, config, _texts(first), vocabulary_size=VOCABULARY_SIZE)
    _set_chat_template(tokenizer, first, training_args)
    config = config or default_llama(tokenizer, training_args.max_length or DEFAULT_LENGTH)
    model = build_model(AutoModelForCausalLM, config, args, training_args.seed, **_quantization(args))
    trainer = MaxSupSFTTrainer(
        model,
        training_args,
        train_dataset=first,  # which it must be given, also to evaluate only
        eval_dataset=splits.get("validation"),
        processing_class=tokenizer,
        peft_config=_adapter(args),
    )
    _report_length(first, trainer.train_dataset, split, training_args)
    if "train" not in splits:
        trainer.train_dataset = None
    elif "validation" in splits:
        _report_length(splits["validation"], trainer.eval_dataset, "validation", training_args)
    if "test" in splits:
        splits = {**splits, "test": _prepared(trainer, splits["test"])}
        _report_length(rows["test"], splits["test"], "test", training_args)
    limit = training_args.max_length or DEFAULT_LENGTH
    builtin = "names, dates and amounts of Unicode CLDR, en to de"
    return run.make_job(
        args, trainer, splits, "text-generation", builtin,
        rows=rows, max_seq_length=limit, label_column_name="completion",
    )  # fmt: skip


def _report_length(rows: Dataset, prepared: Dataset, split: str, args: Any) -> None:
    """Say how many rows TRL cut to `max_length` tokens, and how many it left out because nothing of their answers is left.

    Args:
        rows: of the split, before TRL prepared them.

    Raises:
        ValueError: it left out all of them.
    """
    dropped, length = len(rows) - len(prepared), args.max_length
    if len(prepared) == 0:
        raise ValueError(
            f"max_length: no row of the {split} data has anything to train within {length} tokens; raise max_length"
        )
    if length is None or args.packing:
        return
    if dropped > 0:
        logger.warning(
            "%d of the %d rows of the %s data are not used: within max_length=%d tokens nothing of their answers is left",
            dropped, len(rows), split, length,
        )  # fmt: skip
    full = sum(len(ids) == length for ids in prepared["input_ids"])
    logger.log(
        logging.WARNING if full else logging.INFO,
        "%s data: %d of %d rows (%.1f%%) reach max_length=%d tokens; what is longer is cut",
        split, full, len(rows), 100 * full / len(rows), length,
    )  # fmt: skip


def _as_chats(rows: Dataset) -> Dataset:
    """Rows whose prompts and completions are lists of turns, as `messages`, which predicting reads."""
    if "prompt" not in rows.column_names or is_string(rows.features["prompt"]):
        return rows
    turns = zip(rows["prompt"], rows["completion"], strict=True)
    return _with_identifiers(Dataset.from_dict({"messages": [prompt + completion for prompt, completion in turns]}), rows)


def _load_conversations(args: SFTArguments) -> Splits:
    splits = load_splits(args, _builtin)
    conversations = {split: as_conversations(dataset, split) for split, dataset in splits.items()}
    if "test" in splits:
        conversations["test"] = _with_identifiers(conversations["test"], splits["test"])
    return hold_out_and_limit(conversations, args)


def _with_identifiers(dataset: Dataset, rows: Dataset) -> Dataset:
    """Conversations with the columns by which their rows are known."""
    ids = rows.select_columns(identifier_columns(rows, dataset.column_names))
    features = Features({**dataset.features, **ids.features})
    return Dataset.from_dict({**dataset[:], **ids[:]}, features)


def _builtin() -> Dataset:
    phrases = translated_phrases()
    prompts = [f"In German: {text}\n" for text in phrases["source"]]
    return Dataset.from_dict({"prompt": prompts, "completion": list(phrases["target"])})


def _texts(dataset: Dataset) -> Iterator[str]:
    """All texts of the rows, to train a tokenizer on."""
    for row in dataset:
        for value in row.values():
            yield from [value] if isinstance(value, str) else (message["content"] or "" for message in value)


def _set_chat_template(tokenizer: PreTrainedTokenizerBase, dataset: Dataset, training_args: Any) -> None:
    is_chat = any(not isinstance(value, str) for value in dataset[0].values())
    if not is_chat or tokenizer.chat_template is not None or training_args.chat_template_path is not None:
        return
    if tokenizer.name_or_path:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path!r} has no chat template, which rows of messages need: take the "
            "instruction-tuned model, or name a template with --chat_template_path"
        )
    tokenizer.chat_template = CHAT_TEMPLATE


def _quantization(args: SFTArguments) -> dict[str, Any]:
    if not (args.load_in_4bit or args.load_in_8bit):
        return {}
    from transformers import BitsAndBytesConfig

    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=args.load_in_4bit,
            load_in_8bit=args.load_in_8bit,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }


def _adapter(args: SFTArguments) -> Any:
    if not args.use_peft:
        return None
    from peft import LoraConfig

    modules = args.lora_target_modules
    if modules is not None and modules != "all-linear":
        modules = [name.strip() for name in modules.split(",")]  # type: ignore[assignment]
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=modules,
    )


def _prepared(trainer: Any, dataset: Dataset) -> Dataset:
    """The test data as TRL prepares training and validation data when it is constructed."""
    args = trainer.args
    return trainer._prepare_dataset(dataset, trainer.processing_class, args, args.packing, None, "test")


def main(argv: Sequence[str] | None = None) -> None:
    """`maxsup-hf train sft`; see `--help`."""
    run.main(prepare, argv)


if __name__ == "__main__":
    main()
