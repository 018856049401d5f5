"""Row statistics and their gradient on the CPU, compiled by numba.

Logits and `out` are (N, K) or (outer, K, inner), with any strides; the rows of the latter are ordered outer-major,
inner-minor. Soft targets have the shape of the logits, everything else has one entry per row. Nothing of the size of the
logits is allocated: layouts and dtypes that cannot be read in place go through a small buffer, a few rows at a time.

numba is imported at the first call, which also compiles what it needs (about a second, cached on disk).
"""

from __future__ import annotations

import getpass
import hashlib
import os
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maxsup_hf.ops import _pool

SMALL = 1 << 15  # elements; `small_rows_and_grad` is meant for batches up to this size
_SHARED = 1 << 19  # elements from which on a batch is worth waking other threads for
_TILE = 1 << 15  # numbers in a buffer
_COLUMN_CLASSES = 2048  # with more, the rows that go through memory together leave the cache
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def why_unavailable() -> str | None:
    """The reason for which this backend cannot be used in this environment, or None if it can. Imports numba."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # an installation can be broken in more ways than being absent
        return f"numba cannot be imported ({type(error).__name__}: {error})"
    return None


def rows(logits: Tensor, target: Tensor, *, ignore_index: int, square: bool, expected: bool) -> tuple[Tensor, Tensor]:
    """Compute the statistics of each row.

    Args:
        logits: (N, K) or (outer, K, inner); float32, float64, bfloat16 or float16.
        target: (N,) int64 class indices, or floating class probabilities of the shape of `logits`.
        ignore_index: rows with this class index are ignored. Not used with class probabilities.
        square, expected: whether these two statistics are needed; otherwise their columns are 0.

    Returns:
        Statistics (N, 8), float32 (float64 for float64 logits), and the index of the top (N,), int64. Ignored rows hold 0.
        A class index outside of [0, K), as in a shard of the classes, gives label 0.
    """
    stats, index = _statistics(logits)
    _run(logits, target, None, None, stats, index, ignore_index, square or expected, True)
    return stats, index


def rows_grad(
    logits: Tensor, target: Tensor, stats: Tensor, index: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int
) -> None:
    """Write to `out` the gradient with respect to the logits.

    Args:
        stats, index: what `rows` returned, or those of whole rows of which `logits` is a shard. A class index or an index
            of the top outside of [0, K) is then in another shard.
        slopes: (N, 7), or (1, 7) for all rows: the derivatives of the loss with respect to the first seven statistics.
    """
    moments = bool(slopes[:, 5:].any())
    _run(logits, target, out, slopes, stats.contiguous(), index.contiguous(), ignore_index, moments, False)


def rows_and_grad(
    logits: Tensor, target: Tensor, slopes: Tensor, out: Tensor, *, ignore_index: int, square: bool, expected: bool
) -> tuple[Tensor, Tensor]:
    """`rows` and `rows_grad` in one pass over each row, for slopes known beforehand."""
    stats, index = _statistics(logits)
    _run(logits, target, out, slopes, stats, index, ignore_index, square or expected, True)
    return stats, index


def serves_small(logits: Tensor, target: Tensor) -> bool:
    """Whether `small_rows_and_grad` takes these: up to `SMALL` contiguous float32 logits and int64 class indices."""
    return (
        logits.dim() == 2
        and 0 < logits.numel() <= SMALL
        and logits.dtype is torch.float32
        and target.dtype is torch.int64
        and logits.is_contiguous()
        and target.is_contiguous()
    )


def small_rows_and_grad(
    logits: Tensor, target: Tensor, slopes: tuple[float, ...], out: Tensor, *, ignore_index: int, mean: bool
) -> tuple[float, ...]:
    """`rows_and_grad` in one call with little overhead, for one set of slopes and statistics that are only needed summed.

    Args:
        logits: contiguous (N, K) float32.
        target: contiguous (N,) int64.
        slopes: seven floats, the same for all rows.
        out: contiguous (N, K) float32, which receives the gradient.
        mean: divide the slopes by the number of rows that are not ignored (by 1 if there are none).

    Returns:
        The sums over the rows of the eight statistics, and the number of rows that are not ignored.
    """
    rows, classes = logits.shape
    kernel = _small_kernel(slopes[5] != 0 or slopes[6] != 0)
    return kernel(logits.data_ptr(), target.data_ptr(), out.data_ptr(), rows, classes, ignore_index, mean, *slopes)


def _statistics(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for `stats` and `index`."""
    rows = logits.shape[0] if logits.dim() == 2 else logits.shape[0] * logits.shape[2]
    number = torch.float64 if logits.dtype is torch.float64 else torch.float32
    return logits.new_empty((rows, 8), dtype=number), logits.new_empty(rows, dtype=torch.int64)


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
    """Call the kernel for these dtypes on all rows, on several threads if there are many."""
    rows, classes = stats.shape[0], logits.shape[1]
    if classes == 0:
        raise ValueError(f"logits must have at least one class, got the shape {tuple(logits.shape)}")
    if rows == 0:
        return
    soft = target.is_floating_point()
    if not soft:
        target = target.contiguous()
    if slopes is None:
        slopes = stats  # not read
    elif slopes.dtype is not stats.dtype or not slopes.is_contiguous():
        slopes = slopes.to(stats.dtype).contiguous()
    number = stats.dtype
    inner = rows if logits.dim() == 2 else logits.shape[2]
    addresses = (
        *(logits.data_ptr(), target.data_ptr(), 0 if out is None else out.data_ptr()),
        *(slopes.data_ptr(), stats.data_ptr(), index.data_ptr()),
    )
    slopes_step = 7 if slopes.shape[0] > 1 else 0
    z_steps = _steps(logits)
    g_steps = z_steps if out is None else _steps(out)
    with_gradient = out is not None
    arguments: tuple[int, ...]
    if not soft and z_steps[2] != 1 and classes <= _COLUMN_CLASSES:
        from maxsup_hf.ops._numba_columns import BUFFER_ROWS, LANES

        tile, buffered = LANES, BUFFER_ROWS
        kernel = _column_kernel(logits.dtype, moments, with_stats, with_gradient)
        arguments = *addresses, slopes_step, ignore_index, classes, inner, *z_steps, *g_steps
    else:
        t_steps = _steps(target) if soft else (0, 0, 1)
        contiguous = z_steps[2] == t_steps[2] == g_steps[2] == 1
        direct = contiguous and logits.dtype is number and (not soft or target.dtype is number)
        tile = max(1 if contiguous else 16, min(64, _TILE // classes))
        buffered = 0 if direct else 3 * tile
        kernel = _kernel(logits.dtype, target.dtype, moments, with_stats, with_gradient)
        arguments = *addresses, slopes_step, ignore_index, classes, inner, tile, *z_steps, *t_steps, *g_steps

    def task(first: int, last: int) -> None:
        buffer = torch.empty(buffered * classes, dtype=number)
        kernel(*arguments, buffer.data_ptr(), first, last)

    threads = torch.get_num_threads()
    if threads == 1 or rows == 1 or rows * classes < _SHARED:
        task(0, rows)
    else:
        _pool.share(task, rows, threads, tile)


def _steps(x: Tensor) -> tuple[int, int, int]:
    """Strides of (outer, inner, class)."""
    if x.dim() == 2:
        inner, of_class = x.stride()
        return 0, inner, of_class
    outer, of_class, inner = x.stride()
    return outer, inner, of_class


def _numpy_dtypes(dtype: torch.dtype) -> tuple[type, type]:
    """How kernels see numbers of this dtype in memory, and the dtype of arithmetic on them."""
    import numpy as np

    from maxsup_hf.ops import _numba_memory

    memory = {
        torch.float32: np.float32,
        torch.float64: np.float64,
        torch.bfloat16: _numba_memory.BFLOAT16,
        torch.float16: _numba_memory.FLOAT16,
        torch.int64: np.int64,
    }
    return memory[dtype], np.float64 if dtype is torch.float64 else np.float32


@cache
def _kernel(
    logits: torch.dtype, target: torch.dtype, moments: bool, with_stats: bool, with_gradient: bool
) -> Callable[..., None]:
    """The compiled kernel for these dtypes."""
    from numba import types

    from maxsup_hf.ops import _numba_kernels

    memory, number = _numpy_dtypes(logits)
    dtypes = memory, _numpy_dtypes(target)[0], number
    name = _name(str(logits), str(target), str(moments), str(with_stats), str(with_gradient))
    soft = target is not torch.int64
    function = _numba_kernels.make_kernel(name, dtypes, soft, moments, with_stats, with_gradient)
    return _compile(function, types.void(*[types.int64] * 23))


@cache
def _column_kernel(logits: torch.dtype, moments: bool, with_stats: bool, with_gradient: bool) -> Callable[..., None]:
    """The compiled kernel for rows that lie side by side."""
    from numba import types

    from maxsup_hf.ops import _numba_columns

    memory, number = _numpy_dtypes(logits)
    name = _name("columns", str(logits), str(moments), str(with_stats), str(with_gradient))
    function = _numba_columns.make_column_kernel(name, (memory, number), moments, with_stats, with_gradient)
    return _compile(function, types.void(*[types.int64] * 19))


@cache
def _small_kernel(moments: bool) -> Callable[..., tuple[float, ...]]:
    from numba import types

    from maxsup_hf.ops import _numba_kernels as kernels

    arguments = [*[types.int64] * 6, types.boolean, *[types.float64] * 7]
    function = kernels.make_small_kernel(_name("small", str(moments)), moments)
    return _compile(function, types.UniTuple(types.float64, 9)(*arguments))


def _name(*kinds: str) -> str:
    """A name under which only this very function is cached, for this code and this CPU.

    numba keeps all functions of one name in one list, which two processes that fill it at once can get wrong.
    """
    kind = hashlib.sha256("".join([_fingerprint(), *kinds]).encode())
    return f"rows_{kind.hexdigest()[:16]}"


@cache
def _fingerprint() -> str:
    """What compiled code depends on besides numba's version, which numba looks at itself."""
    import llvmlite.binding as llvm

    sources = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("_numba_*.py"))]
    cpu = llvm.get_host_cpu_name() + llvm.get_host_cpu_features().flatten()
    return hashlib.sha256(b"".join([*sources, cpu.encode()])).hexdigest()


def _compile(function: Callable[..., Any], signature: Any) -> Callable[..., Any]:
    """Compile with numba, or load what was compiled before.

    numba keeps compiled functions in `NUMBA_CACHE_DIR`, beside the source, or in the user's cache folder. Where none of
    these can be written it refuses, and a temporary folder serves.
    """
    from numba import njit
    from numba.core import config

    settings: Any = config

    def compiled(cache: bool) -> Callable[..., Any]:
        return njit([signature], nogil=True, error_model="numpy", cache=cache)(function)

    try:
        return compiled(cache=True)
    except Exception:  # no folder, a full disk, a damaged file: none of it a reason to fail
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
    """A folder that nobody else can write to, since what is loaded from it is run."""
    folder = Path(tempfile.gettempdir()) / f"maxsup_hf_{getpass.getuser()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o077):
        raise PermissionError(f"{folder} belongs to someone else or can be written by others")
    return str(folder)
