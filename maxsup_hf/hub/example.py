"""An input of a model card's code, and what the model answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from maxsup_hf.hub.values import as_list
from maxsup_hf.output.files import replacing
from maxsup_hf.output.messages import one_line

logger = logging.getLogger(__name__)

IMAGE = "example.png"
TEXT = "Thank you, that was exactly what I was looking for."


class Call(NamedTuple):
    """How a pipeline is called in a card.

    Attributes:
        code: with `{given}` for the input.
        options: the arguments of the call in `code`.
        lines: what the code prints, from the output of the pipeline.
        text: the input where no example was recorded; `None` for an image.
    """

    code: str
    options: Mapping[str, Any]
    lines: Callable[[Any], list[str]]
    text: str | None


CLASSIFY = Call(
    """for answer in model({given}, top_k=3):\n    print(f"{{answer['score']:.2f}} {{answer['label']}}")""",
    {"top_k": 3},
    lambda found: [f"{answer['score']:.2f} {answer['label']}" for answer in found],
    TEXT,
)
CALLS = {
    "text-classification": CLASSIFY,
    "image-classification": CLASSIFY._replace(text=None),
    "token-classification": Call(
        """for found in model({given}, aggregation_strategy="simple"):\n    print(found["entity_group"], found["word"])""",
        {"aggregation_strategy": "simple"},
        lambda found: [f"{each['entity_group']} {each['word']}" for each in found],
        "Ada Lovelace was born in London.",
    ),
    "image-segmentation": Call(
        """for found in model({given}):\n    print(found["label"])""",
        {},
        lambda found: [each["label"] for each in found],
        None,
    ),
    "text-generation": Call(
        """print(model({given}, max_new_tokens=20)[0]["generated_text"])""",
        {"max_new_tokens": 20},
        lambda found: found[0]["generated_text"].splitlines(),
        "Once upon a time",
    ),
}


def example_of(folder: Path, found: Mapping[str, Any], given: str, trust_remote_code: bool = False) -> dict[str, Any]:
    """Apply the model in a folder to a text or an image. The image is copied to the folder.

    Args:
        found: the record of the run.
        given: a text, or the path of an image.
        trust_remote_code: run the model's code in the folder, if it has any.

    Returns:
        `text` of the input, unless it is an image, and `output`, the lines that the card's code prints.

    Raises:
        ValueError: the task has no example, the image cannot be read, or the model cannot be loaded or does not answer.
    """
    from transformers import pipeline

    task = next(iter(as_list(found.get("tasks"))), None)
    if task not in CALLS or found["model"].get("adapter"):
        raise ValueError(f"example: adapters and the task {task} are not supported; the tasks are {', '.join(CALLS)}")
    if "auto_class" in found["model"] and not trust_remote_code:
        raise ValueError(f"example: the model runs its own code in {folder}: read it, and allow it by --trust_remote_code")
    is_image = CALLS[task].text is None
    value: Any = _image(given) if is_image else given
    problem = "cannot be loaded"
    try:
        model = pipeline(task, model=str(folder), trust_remote_code=trust_remote_code)  # type: ignore[call-overload]
        problem = "does not answer this example"
        output = _answer(model, task, value)
    except Exception as error:  # of any type: libraries and a model's own code raise all kinds
        reason = one_line(error)[:200]
        raise ValueError(f"example: the model in {folder} {problem}: {reason}") from error
    if not is_image:
        return {"text": given, "output": output}
    with replacing(folder / IMAGE) as unfinished:
        value.save(unfinished, format="png")
    return {"output": output}


def example_in_training(trainer: Any, model: Any, task: str | None) -> dict[str, Any]:
    """The example of a text classifier that was just trained; empty for other models, whose input is not known, and for one
    on several devices."""
    if task != "text-classification" or trainer.processing_class is None or hasattr(model, "peft_config"):
        return {}
    if trainer.args.world_size * max(1, trainer.args.n_gpu) > 1 or trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return {}
    from transformers import TextClassificationPipeline

    training = model.training
    try:
        answering = TextClassificationPipeline(model=model.eval(), tokenizer=trainer.processing_class, device=model.device)
        return {"text": TEXT, "output": _answer(answering, task, TEXT)}
    except Exception as error:  # a model may raise anything, and a card is complete without an example
        logger.info("the model card has no example: %s", error)
        return {}
    finally:
        model.train(training)


def _answer(model: Any, task: str, value: Any) -> list[str]:
    return CALLS[task].lines(model(value, **CALLS[task].options))


def _image(path: str) -> Any:
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise ValueError(f"example must be an image file for this model, got {path!r}: {error}") from error
