"""Loading a trained model for prediction, or an adapter with its base model."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, PretrainedConfig
from transformers.utils import logging as transformers_logging
from transformers.utils.generic import is_timm_local_checkpoint
from transformers.utils.peft_utils import find_adapter_config_file

from maxsup_hf.data.files import loading
from maxsup_hf.hub.own_code import names_of_its_class
from maxsup_hf.hub.record import why_no_weights
from maxsup_hf.output.weights import is_adapter, weight_files
from maxsup_hf.prediction.model import Model
from maxsup_hf.prediction.tasks import TASKS, Task, find_task
from maxsup_hf.scripts.common.models import check_complete, hub_options, weights_dtype
from maxsup_hf.scripts.common.tokenizers import max_length

ADAPTED = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "QUESTION_ANS": "question-answering",
    "SEQ_2_SEQ_LM": "sequence-to-sequence",
    "CAUSAL_LM": "language-modeling",
}
UNLIKELY = 65_521  # a number of classes that is not another dimension of a model too


def load_model(args: Namespace) -> tuple[Model, str]:
    """The model of the command line, in evaluation mode on its device, and its task.

    Raises:
        ValueError: it cannot be loaded, or its predictions are not classes of the task.
    """
    if args.model.startswith((".", "/", "~")) and not os.path.isdir(args.model):
        raise ValueError(f"model: there is no folder {args.model!r}")
    dtype = weights_dtype(args.dtype)
    # A complete model may lie beside an adapter.
    is_complete = os.path.isdir(args.model) and not all(map(is_adapter, weight_files(args.model)))
    if find_adapter_config_file(args.model, revision=args.model_revision) and not is_complete:
        task, config, processor, model = _load_adapter(args, dtype)
    elif args.base_model is not None:
        raise ValueError(f"base_model is for adapters, and {args.model!r} is a complete model")
    else:
        with loading("model", args.model):
            reason = why_no_weights(args.model) if os.path.isdir(args.model) else None
            if reason:
                raise ValueError(reason)
            config = AutoConfig.from_pretrained(args.model, **hub_options(args))
            task = args.task or find_task(names_of_its_class(config))
            _check_config(config, task)
            processor = _load_processor(args.model, TASKS[task], hub_options(args))
            model, found = TASKS[task].auto_class.from_pretrained(
                args.model, dtype=dtype, output_loading_info=True, **hub_options(args)
            )
            check_complete(found)
    length = 0
    if not TASKS[task].reads_images:
        processor.pad_token = processor.pad_token or processor.eos_token
        length = max_length(args, config, processor)
    device = args.device or (torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu")
    try:
        model = model.eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: the model cannot be put on {args.device!r}: {error}") from None
    return Model(model, processor, length, args), task


def _check_config(config: PretrainedConfig, task: str) -> None:
    auto_class = TASKS[task].auto_class
    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in auto_class._model_mapping and auto_class.__name__ not in own_code:
        raise ValueError(f"{config.model_type} models do not support {task}; name another task with --task")
    if getattr(config, "problem_type", None) == "multi_label_classification":
        raise ValueError("the model is multi-label, which is not supported: each row gets a single class")
    if task.endswith("classification") and (config.num_labels or 0) < 2:
        raise ValueError(f"the model has a single output, which is a regression; {task} needs classes")


def _load_processor(source: str, task: Task, hub: dict[str, Any]) -> Any:
    """The tokenizer or image processor of a model.

    Raises:
        ValueError: a local folder has none: transformers may make an empty one.
    """
    if is_timm_local_checkpoint(source):  # which is its own image processor
        return AutoImageProcessor.from_pretrained(source, **hub)
    beginnings = ("preprocessor", "processor") if task.reads_images else ("tokenizer", "vocab", "spiece", "sentencepiece")
    if os.path.isdir(source) and not any(file.startswith(beginnings) for file in os.listdir(source)):
        raise ValueError(f"there is no {'image processor' if task.reads_images else 'tokenizer'} beside it")
    auto: Any = AutoImageProcessor if task.reads_images else AutoTokenizer
    return auto.from_pretrained(source, **hub)


# ---- adapters ----


def _load_adapter(args: Namespace, dtype: Any) -> tuple[str, PretrainedConfig, Any, Any]:
    """Task, config, processor and model of an adapter, which is merged into its base model where that is possible."""
    if find_spec("peft") is None:
        raise ValueError(f"model: {args.model!r} is an adapter, which needs peft: pip install peft")
    from peft import PeftConfig, PeftModel

    with loading("model", args.model):
        adapter = PeftConfig.from_pretrained(args.model, revision=args.model_revision)
        task = args.task or _task_of(adapter)
    base = args.base_model or adapter.base_model_name_or_path
    if not base:
        raise ValueError(f"model: the adapter {args.model!r} does not name its base model; name it with --base_model")
    hub = {**hub_options(args), "revision": (None if args.base_model else adapter.revision) or "main"}
    with loading("base_model", base, f"; the adapter {args.model!r} needs it: name its folder or Hub id with --base_model"):
        config = _adapted_config(args, AutoConfig.from_pretrained(base, **hub), TASKS[task])
        _check_config(config, task)
        verbosity = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # a head of another size, which is the adapter's, needs no warning
        model = TASKS[task].auto_class.from_pretrained(base, config=config, dtype=dtype, ignore_mismatched_sizes=True, **hub)
        transformers_logging.set_verbosity(verbosity)
    with loading("model", args.model):
        with_adapter = PeftModel.from_pretrained(model, args.model, revision=args.model_revision)
        merge = getattr(with_adapter.base_model, "merge_and_unload", None)  # adapters of prompts cannot be merged
        processor = None
        with suppress(OSError, ValueError):  # often only the base model has one
            processor = _load_processor(args.model, TASKS[task], hub_options(args))
        processor = processor or _load_processor(base, TASKS[task], hub)
    return task, config, processor, merge() if merge else with_adapter


def _task_of(adapter: Any) -> str:
    if adapter.task_type in ADAPTED:
        return ADAPTED[adapter.task_type]
    model_class = (adapter.auto_mapping or {}).get("base_model_class")
    return find_task([model_class] if model_class else [])


def _adapted_config(args: Namespace, base: PretrainedConfig, task: Task) -> PretrainedConfig:
    """The config beside an adapter, which has the names of the classes; else that of the base model, with as many classes
    as the adapter's head."""
    if os.path.isfile(os.path.join(args.model, "config.json")):
        return AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
    classes = _count_classes(args, base, task)
    if classes not in (None, base.num_labels):
        base.num_labels = classes
    return base


def _count_classes(args: Namespace, config: PretrainedConfig, task: Task) -> int | None:
    """The number of classes of the head that an adapter has; `None` if it has none."""
    from peft.utils import load_peft_weights

    sized = type(config).from_dict({**config.to_dict(), "num_labels": UNLIKELY, "id2label": None, "label2id": None})
    sized.num_labels = UNLIKELY
    with torch.device("meta"):
        model = task.auto_class.from_config(sized, trust_remote_code=args.trust_remote_code)
    weights = load_peft_weights(args.model, device="cpu", revision=args.model_revision)
    heads = [name for name, parameter in model.named_parameters() if parameter.shape[:1] == (UNLIKELY,)]
    found = [weights[f"base_model.model.{name}"] for name in heads if f"base_model.model.{name}" in weights]
    return len(found[0]) if found else None
