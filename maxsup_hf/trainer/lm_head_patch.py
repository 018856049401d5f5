"""Lazy logits: a language model's output embedding passes on its input, and the loss is computed from that in chunks.

With `fused_linear_loss` the output embedding returns `LazyLogits`. The operations that heads apply to logits on the way to
their cross-entropy (a cast, a scale, soft-capping, a bias, the causal shift, a view) are recorded instead of computed, and
the loss is then computed chunk by chunk from hidden states and weight. Any other operation raises, because it needs real
logits. The model is unchanged outside of training forwards, so evaluation, generation and checkpoints are unaffected.
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
    """A head applied an operation to its logits that needs real ones. The message completes "the head …"."""


@dataclass(frozen=True, eq=False)
class LazyLogits:
    """The logits that `head` would compute from `hidden`.

    Attributes:
        hidden: (..., D).
        head: weight, bias, scale and soft cap of the output embedding.
        dtype: the type that the model cast its logits to. Nothing is rounded to it.
    """

    hidden: Tensor
    head: Head
    dtype: torch.dtype

    # ---- properties that models read ----

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

    # ---- operations that are recorded ----

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
        factor, cap = float(other), self.head.softcap
        # The factor m moves inside the soft cap: m·c·tanh(s·x/c) = mc·tanh(ms·x/(mc))
        return self._with(scale=self.head.scale * factor, softcap=None if cap is None else cap * factor)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> LazyLogits:
        if not isinstance(other, Real):
            raise NeedsLogitsError("divides its logits by a tensor")
        return self * (1 / float(other))

    def __add__(self, other: Any) -> LazyLogits:
        is_bias = isinstance(other, Tensor) and other.numel() == other.shape[-1:].numel() == len(self.head.weight)
        if not is_bias or self.head.scale != 1 or self.head.softcap is not None:  # the head adds its bias before both
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
        if sum(map(_num_dimensions, parts)) >= self.ndim or any(part is ... for part in parts):
            last = parts[-1]  # indexes the classes, which hidden states do not have: it must keep all of them
            keeps_all = isinstance(last, slice) and last.indices(self.shape[-1]) == (0, self.shape[-1], 1)
            if not (keeps_all or last is ...):
                raise NeedsLogitsError("selects some classes of its logits")
        return replace(self, hidden=self.hidden[index])

    def _with(self, **changed: Any) -> LazyLogits:
        return replace(self, head=self.head._replace(**changed))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise NeedsLogitsError(f"reads {name!r} of its logits")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        method = _FUNCTIONS.get(function)
        if method is None or not (args and isinstance(args[0], cls)):
            raise NeedsLogitsError(f"applies {getattr(function, '__name__', function)} to its logits")
        return method(*args, **(kwargs or {}))


def _num_dimensions(part: Any) -> int:
    """The number of dimensions that one part of an index selects from."""
    return part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else int(part is not None)


_FUNCTIONS: dict[Any, Any] = {
    torch.tanh: LazyLogits.tanh,
    torch.mul: LazyLogits.__mul__,
    torch.div: LazyLogits.__truediv__,
    torch.add: LazyLogits.__add__,
    torch.reshape: LazyLogits.reshape,
}


def _unsupported(name: str) -> Any:
    def raise_error(self: LazyLogits, *args: Any) -> Any:
        raise NeedsLogitsError(f"applies {name} to its logits")

    return raise_error


# Python looks up operators in the class and never calls __getattr__ for them.
for _name in ("sub", "rsub", "rtruediv", "pow", "rpow", "matmul", "rmatmul", "mod", "floordiv", "neg", "abs", "invert"):
    setattr(LazyLogits, f"__{_name}__", _unsupported(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne", "len", "float", "iter"):
    setattr(LazyLogits, f"__{_name}__", _unsupported(_name))


def output_embedding(model: Any) -> nn.Linear:
    """The layer whose product with hidden states the loss computes in chunks.

    Raises:
        ValueError: the model has no output embedding over a vocabulary, or one that is not a plain linear layer.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        problem = "has no output embedding"
    elif type(head) is not nn.Linear:
        problem = f"has a {type(head).__module__.partition('.')[0]} {type(head).__name__} as its output embedding"
    elif "forward" in vars(head):
        problem = "has an output embedding whose forward is wrapped (by hooks that offload weights, or by another library)"
    elif type(head.weight) not in (nn.Parameter, Tensor, DTensor) or not head.weight.is_floating_point():
        problem = f"has an output embedding whose weight is a {type(head.weight).__name__} of {head.weight.dtype}"
    else:
        return head
    raise ValueError(
        "fused_linear_loss computes the loss from hidden states and the weight of a language model's output embedding, a "
        f"torch.nn.Linear, but {type(model).__name__} {problem}: leave fused_linear_loss out (with PEFT: do not put "
        "adapters or modules_to_save on the output embedding; with FSDP: do not wrap that layer by itself)"
    )


@contextmanager
def lazy_output(layer: nn.Linear) -> Iterator[None]:
    """While this is open, `layer` returns `LazyLogits`."""

    def forward(input: Tensor) -> LazyLogits:
        return LazyLogits(input, Head(layer.weight, layer.bias), input.dtype)

    layer.forward = forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        del layer.forward
