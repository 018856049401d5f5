"""Logits that are not computed: what stands in for them between a language model's output embedding and its loss.

With `fused_linear_loss` the output embedding hands on its input, as a `LazyLogits`. What heads do to logits on the way to
their cross-entropy (a cast, a scale, soft-capping, the causal shift, a view) is noted instead of done, and the loss is then
computed chunk by chunk from hidden states and weight. Anything else raises: such a head needs its logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn


class NeedsLogitsError(ValueError):
    """A head did something to its logits that only real ones bear."""


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """softcap·tanh(scale·(hidden·weightᵀ + bias)/softcap), or without tanh where there is no softcap.

    Attributes:
        hidden: (..., D).
        weight: (V, D).
        bias: (V,) or `None`.
        scale: what logits are multiplied by, before soft-capping.
        softcap: the cap, or `None`.
        dtype: what the head has cast its logits to.
    """

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype
    scale: float = 1.0
    softcap: float | None = None

    # ---- what a head may ask ----

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:-1], len(self.weight)))

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    @property
    def ndim(self) -> int:
        return self.hidden.ndim

    requires_grad = True

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def dim(self) -> int:
        return self.ndim

    def is_floating_point(self) -> bool:
        return True

    # ---- what a head may do ----

    def to(self, *args: Any, **kwargs: Any) -> LazyLogits:
        given = [*args, *kwargs.values()]
        dtypes = [value for value in given if isinstance(value, torch.dtype)]
        return replace(self, dtype=dtypes[0]) if dtypes else self

    def float(self) -> LazyLogits:
        return self.to(torch.float32)

    def contiguous(self) -> LazyLogits:
        return self

    def __mul__(self, other: Any) -> LazyLogits:
        if not isinstance(other, Real):
            raise NeedsLogitsError("multiplies its logits by a tensor")
        softcap = None if self.softcap is None else self.softcap * float(other)  # m·c·tanh(s·x/c) = mc·tanh(ms·x/(mc))
        return replace(self, scale=self.scale * float(other), softcap=softcap)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> LazyLogits:
        if not isinstance(other, Real):
            raise NeedsLogitsError("divides its logits by a tensor")
        return self * (1 / float(other))

    def tanh(self) -> LazyLogits:
        if self.softcap is not None:
            raise NeedsLogitsError("applies tanh to its logits twice")
        return replace(self, softcap=1.0)

    def view(self, *shape: Any) -> LazyLogits:
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        if sizes[-1] == -1:
            sizes[-1] = len(self.weight) if prod(sizes[:-1]) == prod(self.shape[:-1]) else 0
        if sizes[-1] != len(self.weight):
            raise NeedsLogitsError(f"views its logits {tuple(self.shape)} as {tuple(sizes)}")
        return replace(self, hidden=self.hidden.reshape(*sizes[:-1], self.hidden.shape[-1]))

    reshape = view

    def __getitem__(self, index: Any) -> LazyLogits:
        parts = index if isinstance(index, tuple) else (index,)
        of_rows = len(parts) < self.ndim and Ellipsis not in parts
        if not of_rows:  # the last one is of the classes: all of them, or not at all
            last = parts[-1]
            whole = isinstance(last, slice) and last.indices(len(self.weight)) == (0, len(self.weight), 1)
            if not (whole or last is Ellipsis):
                raise NeedsLogitsError("takes some classes out of its logits")
        return replace(self, hidden=self.hidden[index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsLogitsError(f"asks its logits for {name!r}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own: dict[Any, Any] = {
            torch.tanh: cls.tanh,
            torch.mul: cls.__mul__,
            torch.div: cls.__truediv__,
            torch.reshape: cls.reshape,
        }
        if function not in own:
            raise NeedsLogitsError(f"applies {getattr(function, '__name__', function)} to its logits")
        return own[function](*args, **(kwargs or {}))


def output_embedding(model: Any, loss: str) -> nn.Linear:
    """The layer whose product with hidden states is left to the loss.

    Raises:
        ValueError: the model has no output embedding over a vocabulary, or not a plain linear one.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if type(head) is nn.Linear:
        return head
    what = "has no output embedding" if head is None else f"has a {type(head).__name__} as its output embedding"
    raise ValueError(
        f"fused_linear_loss computes loss={loss!r} from hidden states and the weight of a language model's output "
        f"embedding, but {type(model).__name__} {what}, not a plain torch.nn.Linear: leave fused_linear_loss out (with "
        "PEFT: keep LoRA and modules_to_save off the output embedding)"
    )


@contextmanager
def lazy(head: nn.Linear) -> Iterator[None]:
    """While this is open, `head` gives `LazyLogits`."""

    def forward(hidden: Tensor) -> LazyLogits:
        return LazyLogits(hidden, head.weight, head.bias, hidden.dtype)

    head.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del head.forward
