"""Row statistics and their gradient on the CPU, compiled by numba; `rows` and `rows_grad` document every backend.

Logits and `out` are (N, K) or (outer, K, inner), with any strides; the rows of the latter are in outer-major order. Soft
targets have the shape of the logits, everything else has one entry per row. Nothing of the size of the logits is allocated:
layouts and dtypes that cannot be read in place go through a small buffer, a few rows at a time.

numba is imported on the first call, which also compiles the kernels it needs (about a second, cached on disk).
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.ops import _pool
from maxsup_hf.ops.row_stats import empty_stats

_ONE_THREAD = 1 << 18  # elements up to which one thread is faster: waking another takes longer
_LABELS = 1 << 14  # the most rows of `loss_and_grad`, in which every thread reads all labels
_COLUMN_CLASSES = 2048  # with more classes, adjacent rows do not stay in cache, and long sums lose digits
_BLOCK = 1 << 18  # elements that are copied at a time, for layouts and dtypes that need a copy


def why_unavailable() -> str | None:
    """Why this backend cannot be used in this environment, or `None` if it can. Imports numba."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # a broken installation can raise anything
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    return None


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, moments: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics of each row.

    Args:
        logits: (N, K) or (outer, K, inner); float32, float64, bfloat16 or float16.
        target: (N,) int64 class indices, or floating class probabilities of the shape of `logits`.
        ignore_index: rows with this class index are ignored. Not used with class probabilities.
        moments: whether `square`, `expected` and `entropy` are needed; otherwise their columns are 0.

    Returns:
        Statistics (N, 10), float32 (float64 for float64 logits), in the order of `COLUMNS`, and the index of the top (N,),
        int64. Both are 0 for ignored rows. A class index outside [0, K), as in a shard of the classes, gives `label` 0.
    """
    stats, index = empty_stats(logits)
    _run(logits, target, None, None, stats, index, ignore_index, moments, True)
    return stats, index


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int,
    moments: bool,
) -> None:  # fmt: skip
    """Write to `out`, which may be `logits`, the gradient with respect to the logits.

    Args:
        stats, index: what `rows` returned, or those of complete rows of which `logits` is a shard. A class index or an index
            of the top outside [0, K) is then in another shard.
        slopes: (N, 8), or (1, 8) for all rows: the derivatives of the loss with respect to each of `SLOPES`.
        moments: the same as for `rows`; if False, the last three slopes are treated as 0.
    """
    _run(logits, target, out, slopes, stats.contiguous(), index.contiguous(), ignore_index, moments, False)


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, moments: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad` in one pass over each row, for slopes known in advance. `out` must not be `logits`."""
    stats, index = empty_stats(logits)
    _run(logits, target, out, slopes, stats, index, ignore_index, moments, True)
    return stats, index


def loss_and_grad(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], out: Tensor, *, ignore_index: int, divisor: Any
) -> tuple[float, float, float] | None:
    """`rows_and_grad` with little overhead, for slopes that all rows share and statistics that are needed only in sum.

    Args:
        logits: contiguous (N, K) float32 or bfloat16.
        target: contiguous (N,) int64.
        slopes: eight floats, one for each of `SLOPES`.
        out: receives the gradient; like `logits`.
        divisor: divides the slopes; 0 means the number of rows that are not ignored (or 1 if there are none).

    Returns:
        Σ slope·statistic and the cross-entropy, both divided, and 1/divisor. `None` if a class index is out of range, or if
        there are too many rows, in which every thread would read all labels.
    """
    rows, classes = logits.shape
    if rows > _LABELS:
        return None
    kernel = _loss_kernel(logits.dtype, slopes[5] != 0 or slopes[6] != 0 or slopes[7] != 0)
    arguments = logits.data_ptr(), target.data_ptr(), out.data_ptr(), rows, classes, ignore_index, divisor, *slopes
    if rows * classes <= _ONE_THREAD or rows == 1 or torch.get_num_threads() == 1:
        parts = [kernel(*arguments, 0, rows)]
    else:
        parts = _in_parts(kernel, arguments, rows)
    counted = parts[0][2]
    if counted < 0:
        return None
    return sum(part[0] for part in parts), sum(part[1] for part in parts), 1 / (divisor or counted or 1)


def _in_parts(kernel: Callable[..., Any], arguments: tuple[Any, ...], rows: int) -> list[tuple[float, float, int]]:
    """What the kernel returns for ranges of rows, in a fixed order, so that sums do not depend on timing."""
    parts: dict[int, tuple[float, float, int]] = {}

    def task(first: int, last: int) -> None:
        parts[first] = kernel(*arguments, first, last)

    _pool.share(task, rows, torch.get_num_threads())
    return [parts[first] for first in sorted(parts)]


def _run(
    logits: Tensor,
    target: Tensor,
    out: Tensor | None,
    slopes: Tensor | None,
    stats: Tensor,
    index: Tensor,
    ignore_index: int,
    moments: bool,
    with_stats: bool,
) -> None:
    """Call the kernel for this layout on all rows, on several threads if there are many elements.

    Without `with_stats`, `stats` and `index` are inputs. `slopes` and `out` are `None` if no gradient is needed.
    """
    rows, classes = stats.shape[0], logits.shape[1]
    if classes == 0:
        raise ValueError(f"logits must have at least one class, got shape {tuple(logits.shape)}")
    if rows == 0:
        return
    soft = target.is_floating_point()
    # The kernels take an address for every argument; where no gradient is computed, they do not read from it.
    slopes = stats if slopes is None else slopes.to(stats.dtype).contiguous()
    arrays = [logits, logits if out is None else out]
    if soft:
        arrays.append(target)
    steps = None
    if not soft or target.dtype is stats.dtype:
        steps = _row_steps(arrays)
    columns = steps is None
    if columns and logits.dtype is stats.dtype and not soft and classes <= _COLUMN_CLASSES:
        steps = _column_steps(arrays)
    if steps is None:  # neither rows nor columns are contiguous, or a dtype needs conversion
        _by_blocks(logits, target, out, slopes, stats, index, ignore_index, moments, with_stats)
        return
    target = target if soft else target.contiguous()
    kernel = _kernel(logits.dtype, columns, soft, moments, with_stats, out is not None)
    arguments = (
        *(logits.data_ptr(), target.data_ptr(), 0 if out is None else out.data_ptr()),
        *(slopes.data_ptr(), stats.data_ptr(), index.data_ptr()),
        *(int(slopes.shape[0] > 1), ignore_index, classes, *steps),
    )
    threads = torch.get_num_threads()
    if threads == 1 or rows == 1 or rows * classes <= _ONE_THREAD:
        kernel(*arguments, 0, rows)
    else:
        _pool.share(partial(kernel, *arguments), rows, threads)


def _row_steps(arrays: list[Tensor]) -> tuple[int, ...] | None:
    """The strides of rows of logits, gradient and class probabilities, or `None` unless every row is contiguous."""
    steps = []
    for x in arrays:
        if x.stride(1) != 1:
            return None
        if x.dim() == 3 and x.shape[0] > 1 and x.stride(0) != x.shape[2] * x.stride(2):
            return None  # the rows of (outer, K, inner) are not evenly spaced
        steps.append(x.stride(0) if x.dim() == 2 else x.stride(2))
    if len(steps) == 2:
        steps.append(0)  # no class probabilities
    return tuple(steps)


def _column_steps(arrays: list[Tensor]) -> tuple[int, ...] | None:
    """The number of adjacent rows, and for logits and gradient the strides of classes and of blocks of such rows.

    `None` unless rows are adjacent in both.
    """
    if any(x.stride(0 if x.dim() == 2 else 2) != 1 for x in arrays):
        return None
    steps = [arrays[0].shape[0 if arrays[0].dim() == 2 else 2]]
    for x in arrays:
        steps += [x.stride(1), 0 if x.dim() == 2 else x.stride(0)]
    return tuple(steps)


def _by_blocks(
    logits: Tensor, target: Tensor, out: Tensor | None, slopes: Tensor, stats: Tensor, index: Tensor, *rest: Any
) -> None:
    """`_run` on contiguous copies, in the dtype of the arithmetic, of blocks that fit in cache."""
    outer, inner = (1, logits.shape[0]) if logits.dim() == 2 else (logits.shape[0], logits.shape[2])
    step = max(1, _BLOCK // logits.shape[1])
    soft = target.is_floating_point()
    transposed = soft or logits.shape[1] > _COLUMN_CLASSES

    def block(x: Tensor, o: int, part: slice) -> Tensor:
        """A view of some rows: (rows, K) or, for the column kernel, (1, K, rows)."""
        if x.dim() == 2:
            return x[part]
        x = x[o : o + 1, :, part]
        return x[0].T if transposed else x

    for o in range(outer):
        for start in range(0, inner, step):
            part = slice(start, min(start + step, inner))
            rows = slice(o * inner + part.start, o * inner + part.stop)
            z = block(logits, o, part).to(stats.dtype).contiguous()
            t = block(target, o, part).to(stats.dtype).contiguous() if soft else target[rows]
            g = None if out is None else torch.empty_like(z)
            of_rows = slopes[rows] if slopes.shape[0] > 1 else slopes
            _run(z, t, g, of_rows, stats[rows], index[rows], *rest)
            if out is not None and g is not None:
                block(out, o, part).copy_(g)


@cache
def _kernel(
    dtype: torch.dtype, columns: bool, soft: bool, moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """The compiled kernel for a dtype and a layout."""
    import numpy as np
    from numba import types

    from maxsup_hf.ops._numba_columns import make_column_kernel
    from maxsup_hf.ops._numba_kernels import make_kernel

    real = np.float64 if dtype is torch.float64 else np.float32
    flags = (moments, with_stats, with_gradient)
    name = _name(dtype, columns, soft, *flags)
    if columns:
        return _compile(make_column_kernel(name, real, *flags), types.void(*[types.int64] * 16))
    return _compile(make_kernel(name, _memory(dtype), real, soft, *flags), types.void(*[types.int64] * 14))


def _memory(dtype: torch.dtype) -> type:
    """The numpy type under which kernels access memory of this dtype."""
    import numpy as np

    from maxsup_hf.ops import _numba_arithmetic as arithmetic

    narrow = {torch.bfloat16: arithmetic.BFLOAT16, torch.float16: arithmetic.FLOAT16}
    return {torch.float32: np.float32, torch.float64: np.float64, **narrow}[dtype]


@cache
def _loss_kernel(dtype: torch.dtype, moments: bool) -> Callable[..., tuple[float, float, int]]:
    """The compiled kernel of `loss_and_grad` for a dtype."""
    from numba import types

    from maxsup_hf.ops._numba_kernels import make_loss_kernel

    arguments = [*[types.int64] * 6, *[types.float64] * 9, *[types.int64] * 2]
    result = types.Tuple((types.float64, types.float64, types.int64))
    name = _name("loss", dtype, moments)
    return _compile(make_loss_kernel(name, _memory(dtype), moments), result(*arguments))


def _name(*kinds: Any) -> str:
    """A name for numba's cache that is unique to a kernel, this version of its code, and this CPU.

    numba lists all cached functions of the same name in one file, which concurrent processes can corrupt.
    """
    kind = hashlib.sha256("".join([_fingerprint(), *map(str, kinds)]).encode())
    return f"rows_{kind.hexdigest()[:16]}"


@cache
def _fingerprint() -> str:
    """A digest of what compiled code depends on, apart from numba's version, which numba checks itself."""
    import llvmlite.binding as llvm

    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("_numba_*.py"))]
    cpu = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(b"".join([*sources, cpu.encode()])).hexdigest()


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile a function with numba, or load it from numba's cache.

    numba caches in `NUMBA_CACHE_DIR`, next to the source, or in the user's cache folder. If it can write to none of these
    it raises an error, and we use a temporary folder instead; if that fails too, no cache.
    """
    from numba import njit
    from numba.core import config

    settings: Any = config

    def compiled(cache: bool) -> Callable[..., Any]:
        return njit([signature], nogil=True, error_model="numpy", cache=cache)(function)

    try:
        return compiled(cache=True)
    except Exception:  # no writable folder, a full disk, a damaged file: no reason to fail
        pass
    configured = settings.CACHE_DIR
    try:
        settings.CACHE_DIR = _temporary_folder()
        return compiled(cache=True)
    except Exception:
        return compiled(cache=False)
    finally:
        settings.CACHE_DIR = configured


def _temporary_folder() -> str:
    """A folder that no other user can write to, because the code loaded from it is executed."""
    folder = Path(tempfile.gettempdir()) / f"maxsup_hf_{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):
        raise PermissionError(f"{folder} belongs to another user or is accessible to others")
    return str(folder)
