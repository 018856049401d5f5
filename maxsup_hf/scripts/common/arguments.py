"""Parsing the flags of a training script, from the command line and from a `--config` file."""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
import yaml
from huggingface_hub import constants
from transformers import HfArgumentParser
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from maxsup_hf.data.arguments import DataArguments, data_flags, flag
from maxsup_hf.hub.mixin import destination
from maxsup_hf.hub.push import ensure_destination
from maxsup_hf.losses import get_spec, list_losses
from maxsup_hf.metrics import METRICS, get_metric
from maxsup_hf.output.secrets import keep_flags, keep_settings, masked, masked_words
from maxsup_hf.scripts.common.console import disable_library_bars
from maxsup_hf.scripts.common.export import check_export
from maxsup_hf.scripts.common.help import short_help
from maxsup_hf.scripts.common.output_dir import choose_output_dir
from maxsup_hf.scripts.common.recipes import Recipes
from maxsup_hf.scripts.common.resuming import checkpoint_to_resume
from maxsup_hf.trainer.training_args import MaxSupTrainingArguments


@dataclass
class ModelArguments:
    """The model of a run."""

    config: str | None = flag("YAML or JSON file with any of these flags as keys; the command line overrides it.")
    model_name_or_path: str | None = flag("Model to fine-tune: a Hub id or a folder.")
    config_name: str | None = flag("Model to train from random weights: a Hub id, a folder or a config.json.")
    model_revision: str = flag("Branch, tag or commit of the model on the Hub.", "main")
    dtype: str = flag("Type of the weights, as torch names it (float32, bfloat16), or auto.", "float32")
    trust_remote_code: bool = flag("Run model code that comes with a model on the Hub.", False)
    freeze_backbone: bool = flag("Train the head alone; the rest of the model keeps its weights.", False)


@dataclass
class ScriptArguments(DataArguments, ModelArguments):
    """Model and data of a run. Each task derives from this class and adds its own flags."""

    early_stopping_patience: int | None = flag(
        "End training after this many evaluations without a better --metric_for_best_model, and keep the best model."
    )
    predictions_file: str | None = flag(
        "File for --do_predict: csv, jsonl or parquet (default: predictions.csv in --output_dir)."
    )
    export: str | None = flag("Also export the trained model: onnx (needs optimum-onnx).")
    settings: dict[str, Any] = field(default_factory=dict, init=False)  # what the user set, not a flag
    dry_run: bool = flag("Read and check everything, print what would be trained, and stop; nothing is written.", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping_patience is not None and self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience must be at least 1 evaluation, got {self.early_stopping_patience}")
        if self.model_name_or_path and self.config_name:
            raise ValueError(
                "model_name_or_path (fine-tuning) and config_name (random weights) exclude each other, "
                f"got {self.model_name_or_path!r} and {self.config_name!r}; keep one"
            )


# The smallest values of training arguments that transformers does not check.
LEAST = {
    "learning_rate": 0,
    "weight_decay": 0,
    "warmup_steps": 0,
    "max_grad_norm": 0,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "seed": 0,
    "data_seed": 0,
    "max_length": 1,  # of TRL
    "generation_max_length": 1,
    "generation_num_beams": 1,
}

NOT_REPEATED = (
    "config", "output_dir", "resume_from_checkpoint", "resume_anyway", "dry_run", "hub_token", "help", "help_all",
)  # fmt: skip
# Names from other tools, and ours.
ALIASES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "num_epochs": "num_train_epochs",
    "batch_size": "per_device_train_batch_size",
    "train_batch_size": "per_device_train_batch_size",
    "model": "model_name_or_path",
    "dataset": "dataset_name",
    "data": "train_file or --train_dir",
    "steps": "max_steps",
    "label_smoothing": "loss label_smoothing --loss_kwargs alpha",
}

Arguments = TypeVar("Arguments", bound=ScriptArguments)


class HelpShown(SystemExit):
    """Ends the program after `--help_all`, and carries the parser."""

    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__(0)
        self.parser = parser


def parse(
    arguments_class: type[Arguments],
    argv: Sequence[str] | None,
    task: str,
    recipes: Recipes,
    training_class: type[Any] = MaxSupTrainingArguments,
    *,
    classifies: bool = False,
) -> tuple[Arguments, Any]:
    """Parse the flags of a script.

    A value comes from the command line, else from the `--config` file, else from the recipe for this kind of run, else from
    the dataclass.

    Args:
        arguments_class: the script's own flags.
        argv: the command line without the program; `None` means `sys.argv[1:]`.
        task: such as `"image-classification"`; names the program in `--help` and the default output folder.
        recipes: default training arguments of the task.
        training_class: the dataclass of the training arguments.
        classifies: whether the logits have one column for each class, so that `--class_weights` apply.

    Returns:
        The script's arguments and the training arguments, whose `resume_from_checkpoint` is a folder or `None`.

    Raises:
        ValueError, TypeError: an unknown flag or key (the message suggests the closest one), or a bad value.
        OSError: the config file or the checkpoint does not exist, or the output folder is in use.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    keep_flags(argv)
    parser = _build_parser([arguments_class, training_class], task)
    without_help = [word for word in argv if word not in ("-h", "--help", "--help_all")]
    given, _ = parser.parse_known_args(without_help)
    config = _read_config(given.config, parser) if given.config else {}
    parser.set_defaults(**config)
    given, unknown = parser.parse_known_args(without_help)
    if unknown:
        _raise_unknown("argument", unknown[0], parser._option_string_actions)
    output_dir = choose_output_dir(given.output_dir, given.resume_from_checkpoint, f"outputs/{task}")
    parser.set_defaults(**{**_recipe(recipes, given), **config, "output_dir": output_dir})
    if given.early_stopping_patience is not None:
        parser.set_defaults(load_best_model_at_end=True)
    if not (given.do_eval and given.do_train) and "eval_strategy" not in config:  # which would switch do_eval on again
        parser.set_defaults(eval_strategy="no")
    if len(without_help) < len(argv):
        _show_help(parser, arguments_class, in_full="--help_all" in argv)
    final = parser.parse_args(argv)
    _check_values(final)
    try:
        args, training_args, *_ = parser.parse_args_into_dataclasses(argv, look_for_args_file=False)
    except json.JSONDecodeError as error:  # of a flag that takes JSON
        name = next((name for name, value in vars(final).items() if value == error.doc), "a flag")
        wanted = f"{name} must be a JSON object or the name of a file with one"
        raise ValueError(f"{wanted}, got {error.doc!r}: {error}") from None
    args.settings = _settings(parser, argv, config, final)
    args.predicts = training_args.do_predict
    args.needs_training_data = training_args.do_train or args.model_name_or_path is None
    if training_args.metric_for_best_model and "greater_is_better" not in args.settings:
        training_args.greater_is_better = _greater_is_better(training_args.metric_for_best_model)
    if training_args.class_weights is not None and not classifies:
        raise ValueError(f"class_weights are for tasks that classify, and {task} does not; leave class_weights out")
    _set_up_logging(training_args)
    training_args.resume_from_checkpoint = checkpoint_to_resume(given.resume_from_checkpoint, training_args)
    if training_args.disable_tqdm:
        disable_library_bars()
    if training_args.push_to_hub and not constants.is_offline_mode() and training_args.process_index == 0:
        ensure_destination(destination(training_args))  # before the data are read: an invalid token shows at once
    return args, training_args


def _show_help(parser: _Parser, arguments_class: type[Any], in_full: bool) -> NoReturn:
    """Print the help, which lists the defaults of this command line, and end the program."""
    if in_full:
        parser.print_help()
        raise HelpShown(parser)
    print(short_help(parser, [field.name for field in fields(arguments_class) if field.init]))
    raise SystemExit(0)


def _check_values(given: Any) -> None:
    """Check training arguments that transformers takes as they are, and fails on during training.

    Raises:
        ValueError: names the argument.
    """
    for name, least in LEAST.items():
        value = getattr(given, name, None)
        if value is not None and not least <= value < math.inf:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if given.max_steps <= 0 and not 0 < given.num_train_epochs < math.inf:
        raise ValueError(f"num_train_epochs must be greater than 0, got {given.num_train_epochs:g}, or give max_steps")
    if not (given.do_train or given.do_eval or given.do_predict):
        raise ValueError("do_train, do_eval and do_predict are all false; set one of them to true")
    if given.predictions_file is not None and not given.do_predict:
        raise ValueError("predictions_file is written with --do_predict true; give both or neither")
    if given.early_stopping_patience is not None and str(given.eval_strategy) in ("no", "IntervalStrategy.NO"):
        raise ValueError(
            "early_stopping_patience counts evaluations, and eval_strategy is no; set --eval_strategy epoch or steps"
        )
    check_export(given.export)
    if given.torch_compile_mode is not None:
        _check_compile_mode(given.torch_compile_mode)
    if given.optim_args is not None and not all("=" in pair for pair in given.optim_args.split(",")):
        raise ValueError(f"optim_args must be comma-separated key=value pairs, got {given.optim_args!r}")
    if given.deepspeed is not None and find_spec("deepspeed") is None:
        raise ValueError("deepspeed is not installed: pip install deepspeed")
    trackers = given.report_to if isinstance(given.report_to, list) else [given.report_to or "none"]
    available = get_available_reporting_integrations()
    missing = [name for name in trackers if name in INTEGRATION_TO_CALLBACK and name not in available]
    unknown = [name for name in trackers if name not in (*INTEGRATION_TO_CALLBACK, "all", "none")]
    if unknown:
        raise ValueError(f"report_to: there is no tracker {unknown[0]!r}; name one of {', '.join(INTEGRATION_TO_CALLBACK)}")
    if missing:
        raise ValueError(f"report_to: {missing[0]} is not installed; install it, or leave it out of report_to")


def _check_compile_mode(mode: str) -> None:
    from torch._inductor import list_mode_options  # takes long to import

    if mode not in list_mode_options():
        raise ValueError(f"torch_compile_mode must be one of {', '.join(list_mode_options())}, got {mode!r}")


def _greater_is_better(name: str) -> bool:
    """The better end of a metric, by its record; transformers takes all but losses for better when greater.

    Raises:
        ValueError: the metric has no better end.
    """
    metric = get_metric(name.removeprefix("eval_"))
    if metric.name not in METRICS:
        return not name.endswith("loss")
    if metric.higher_is_better is None:
        raise ValueError(
            f"metric_for_best_model: {name!r} describes a model and has no better end; name another metric, or give "
            "--greater_is_better"
        )
    return metric.higher_is_better


def _recipe(recipes: Recipes, given: Any) -> Mapping[str, Any]:
    """The recipe for the model and the data that the flags name."""
    if given.model_name_or_path:
        return recipes.fine_tuning
    return recipes.from_scratch if data_flags(given) else recipes.builtin


def _build_parser(classes: Sequence[type[Any]], task: str) -> _Parser:
    parser = _Parser(
        classes,  # type: ignore[arg-type]
        prog=f"maxsup-hf train {task}",
        allow_abbrev=False,  # an abbreviated or misspelled flag must not pass for another one
        usage="%(prog)s [flags]",
        description="The flags from --output_dir on are the training arguments of transformers, with --loss and "
        "--loss_kwargs. Defaults depend on the data and the model: give those flags along with --help to see theirs.",
    )
    # Without an accelerator, pinned memory only causes a warning, and ranks without use_cpu would each train alone.
    has_accelerator = torch.accelerator.is_available()
    parser.set_defaults(output_dir=None, dataloader_pin_memory=has_accelerator, use_cpu=not has_accelerator)
    # A bar that is redirected into a file becomes thousands of lines.
    parser.set_defaults(do_train=True, do_eval=True, disable_tqdm=not sys.stderr.isatty())
    parser.add_argument("--help_all", action="store_true", help="show every flag in full, and exit")
    return parser


def _settings(parser: _Parser, argv: Sequence[str], config: Iterable[str], final: Any) -> dict[str, Any]:
    """What the user has set, on the command line or in a file: a `--config` with it repeats the run. Without the token, and
    without what belongs to a single start of the run."""
    options = parser._option_string_actions
    words = [word.partition("=")[0] for word in argv]
    names = dict.fromkeys([*config, *(options[word].dest for word in words if word in options)])
    return {name: getattr(final, name) for name in names if name not in NOT_REPEATED}


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(masked(message))  # argparse would print the usage of 150 flags and exit


def _read_config(path: str, parser: HfArgumentParser) -> dict[str, Any]:
    """The keys and values of a YAML or JSON file, as defaults for argparse."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"config: expected a YAML or JSON file, but there is no file {path!r}")
    try:
        text = Path(path).read_text(encoding="utf-8")
        keep_settings(text)
        values = yaml.safe_load(text)  # JSON is YAML too
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {path!r} cannot be parsed as YAML or JSON: {masked(str(error))}") from None
    if not isinstance(values, dict):
        raise ValueError(f"config: {path!r} must hold keys and values, got {type(values).__name__}")
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    defaults = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in actions:
            _raise_unknown(f"config: key in {path!r}", str(key), actions)
        # argparse converts and checks only defaults that are strings. So YAML's 1e-3, which YAML reads as a string, becomes
        # a number too.
        is_scalar = actions[name].type in (int, float, str) and isinstance(value, (int, float, str))
        defaults[name] = str(value) if is_scalar else value
    return defaults


def _raise_unknown(what: str, name: str, known: Iterable[str]) -> NoReturn:
    word = name.partition("=")[0]
    name = masked_words([name])[0]
    close = difflib.get_close_matches(word, [each for each in known if each not in ("-h", "--help")], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "see --help_all for all of them"
    parameter = word.lstrip("-")
    if parameter in ALIASES:
        hint = f"it is called --{ALIASES[parameter]} here"
    if any(parameter.removesuffix("_end") in get_spec(loss).parameters for loss in list_losses()):
        hint = f"parameters of a loss go into loss_kwargs, as --loss_kwargs {parameter}=0.1"
    raise ValueError(f"unknown {what}: {name!r}; {hint}")


def _set_up_logging(training_args: Any) -> None:
    """Log this package's messages to stderr: by default from INFO on the main process, and from WARNING on the others."""
    logging.basicConfig(format="%(levelname)s %(message)s")
    default = logging.INFO if training_args.process_index == 0 else logging.WARNING
    passive = training_args.log_level == "passive"
    logging.getLogger("maxsup_hf").setLevel(default if passive else training_args.get_process_log_level())
