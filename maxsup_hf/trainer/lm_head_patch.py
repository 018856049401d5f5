"""Logits that are not computed: what stands in for them between a language model's output embedding and its loss.

With `fused_linear_loss` the output embedding hands on its input, as `LazyLogits`. What heads do to logits on the way to
their cross-entropy (a cast, a scale, soft-capping, a bias, the causal shift, a view) is noted instead of done, and the loss
is then computed chunk by chunk from hidden states and weight. Anything else raises: such a head needs its logits. The model
itself is the same before and after each training forward, so that evaluation, generation and checkpoints know nothing of it.
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
from torch.distributed.tensor import DTensor

from maxsup_hf.ops.linear import Head


class NeedsLogitsError(ValueError):
    """A head did something to its logits that only real ones bear. The message completes "the head …"."""


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """The logits that `head` makes of `hidden`.

    Attributes:
        hidden: (..., D).
        head: how logits come from them.
        dtype: what the model has cast its logits to. Nothing is rounded to it.
    """

    hidden: Tensor
    head: Head
    dtype: torch.dtype

    # ---- what a model may ask ----

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.hidden.shape[:-1], len(self.head.weight)))

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

    # ---- what a model may do ----

    def to(self, *args: Any, **kwargs: Any) -> LazyLogits:
        dtypes = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.dtype)]
        return replace(self, dtype=dtypes[0]) if dtypes else self

    def float(self) -> LazyLogits:
        return self.to(torch.float32)

    def contiguous(self) -> LazyLogits:
        return self

    def __mul__(self, other: Any) -> LazyLogits:
        if not isinstance(other, Real):
            raise NeedsLogitsError("multiplies its logits by a tensor")
        by, cap = float(other), self.head.softcap
        # m·c·tanh(s·x/c) = mc·tanh(ms·x/(mc))
        return self._with(scale=self.head.scale * by, softcap=None if cap is None else cap * by)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> LazyLogits:
        if not isinstance(other, Real):
            raise NeedsLogitsError("divides its logits by a tensor")
        return self * (1 / float(other))

    def __add__(self, other: Any) -> LazyLogits:
        of_classes = isinstance(other, Tensor) and other.numel() == other.shape[-1:].numel() == len(self.head.weight)
        if not of_classes or self.head.scale != 1 or self.head.softcap is not None:
            raise NeedsLogitsError("adds something to its logits")
        return self._with(bias=other.flatten() if self.head.bias is None else self.head.bias + other.flatten())

    def tanh(self) -> LazyLogits:
        if self.head.softcap is not None:
            raise NeedsLogitsError("applies tanh to its logits twice")
        return self._with(softcap=1.0)

    def view(self, *shape: Any) -> LazyLogits:
        sizes = list(shape[0] if len(shape) == 1 and not isinstance(shape[0], int) else shape)
        classes = self.shape[-1]
        if sizes[-1] == -1 and prod(sizes[:-1]) == prod(self.shape[:-1]):
            sizes[-1] = classes
        if sizes[-1] != classes:
            raise NeedsLogitsError(f"views its logits {tuple(self.shape)} as {tuple(sizes)}")
        return replace(self, hidden=self.hidden.reshape(*sizes[:-1], self.hidden.shape[-1]))

    reshape = view

    def __setitem__(self, index: Any, value: Any) -> None:
        raise NeedsLogitsError("writes into its logits")

    def __getitem__(self, index: Any) -> LazyLogits:
        parts = index if isinstance(index, tuple) else (index,)
        if sum(map(_dimensions, parts)) >= self.ndim or any(part is ... for part in parts):
            last = parts[-1]  # it is of the classes: all of them, or not at all
            whole = isinstance(last, slice) and last.indices(self.shape[-1]) == (0, self.shape[-1], 1)
            if not (whole or last is ...):
                raise NeedsLogitsError("takes some classes out of its logits")
        return replace(self, hidden=self.hidden[index])

    def _with(self, **changed: Any) -> LazyLogits:
        return replace(self, head=self.head._replace(**changed))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsLogitsError(f"asks its logits for {name!r}")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        own = _FUNCTIONS.get(function)
        if own is None or not (args and isinstance(args[0], cls)):
            raise NeedsLogitsError(f"applies {getattr(function, '__name__', function)} to its logits")
        return own(*args, **(kwargs or {}))


def _dimensions(part: Any) -> int:
    """How many dimensions a part of an index is of."""
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else int(part is not None)


_FUNCTIONS: dict[Any, Any] = {
    torch.tanh: LazyLogits.tanh,
    torch.mul: LazyLogits.__mul__,
    torch.div: LazyLogits.__truediv__,
    torch.add: LazyLogits.__add__,
    torch.reshape: LazyLogits.reshape,
}


def _refusal(name: str) -> Any:
    def refuse(self: LazyLogits, *args: Any) -> Any:
        raise NeedsLogitsError(f"applies {name} to its logits")

    return refuse


# Python looks operators up in the class, past __getattr__.
for _name in ("sub", "rsub", "rtruediv", "pow", "rpow", "matmul", "rmatmul", "mod", "floordiv", "neg", "abs", "invert"):
    setattr(LazyLogits, f"__{_name}__", _refusal(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "len", "float", "iter"):
    setattr(LazyLogits, f"__{_name}__", _refusal(_name))


def output_embedding(model: Any) -> nn.Linear:
    """The layer whose product with hidden states is left to the loss.

    Raises:
        ValueError: the model has no output embedding over a vocabulary, or not a plain linear one.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        what = "has no output embedding"
    elif type(head) is not nn.Linear:
        what = f"has a {type(head).__module__.partition('.')[0]} {type(head).__name__} as its output embedding"
    elif "forward" in vars(head):
        what = "has an output embedding whose forward is wrapped (by hooks that offload weights, or by another library)"
    elif type(head.weight) not in (nn.Parameter, Tensor, DTensor) or not head.weight.is_floating_point():
        what = f"has an output embedding whose weight is a {type(head.weight).__name__} of {head.weight.dtype}"
    else:
        return head
    raise ValueError(
        "fused_linear_loss computes the loss from hidden states and the weight of a language model's output embedding, a "
        f"torch.nn.Linear, but {type(model).__name__} {what}: leave fused_linear_loss out (with PEFT: keep "
        "adapters and modules_to_save off the output embedding; with FSDP: do not wrap that layer by itself)"
    )


@contextmanager
def lazy(layer: nn.Linear) -> Iterator[None]:
    """While this is open, `layer` gives `LazyLogits`."""

    def forward(input: Tensor) -> LazyLogits:
        return LazyLogits(input, Head(layer.weight, layer.bias), input.dtype)

    layer.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del layer.forward
