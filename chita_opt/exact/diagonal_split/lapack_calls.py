"""LAPACK and BLAS from compiled loops: factor, solve and invert without a way through Python.

scipy exports its LAPACK as plain function pointers. Compiled functions get the addresses as
arguments, so that they can be kept on disk, and call them on pointers to their arrays. Matrices
are Fortran-ordered and square; of symmetric ones only the lower triangle is read or written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import get_cython_function_address, intrinsic

from chita_opt.supports.base import Array

_LAPACK, _BLAS = "scipy.linalg.cython_lapack", "scipy.linalg.cython_blas"
CALLS = (
    get_cython_function_address(_LAPACK, "dpotrf"),
    get_cython_function_address(_LAPACK, "dpotrs"),
    get_cython_function_address(_LAPACK, "dtrtri"),
    get_cython_function_address(_LAPACK, "dlauum"),
    get_cython_function_address(_BLAS, "dtrmm"),
)
"""Addresses for the functions below."""

_LETTERS = np.frombuffer(b"LNR", dtype=np.uint8)  # lower or left; no transpose, unit; right
_SIGNS = np.array([-1.0, 1.0])
_BLOCK = 24  # LAPACK's triangular inverse is unblocked up to 64, and slower than products


def _typed_call(typing_context: Any, address: Any, arguments: Any) -> Any:
    """Call a function by address with a tuple of pointers."""

    def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * len(arguments))
        function = builder.inttoptr(values[0], kind.as_pointer())
        count = range(len(arguments))
        builder.call(function, [builder.extract_value(values[1], i) for i in count])
        return context.get_dummy_value()

    return types.void(address, arguments), generate


_call: Any = intrinsic(_typed_call)


@njit(cache=True, nogil=True)
def factor(calls: Any, A: Array, n_info: Array) -> bool:
    """Replace A by its Cholesky factor; False where it is not positive definite."""
    n_info[0], n_info[1] = len(A), 0
    n = n_info.ctypes.data
    _call(calls[0], (_LETTERS.ctypes.data, n, A.ctypes.data, n, n + 4))
    return n_info[1] == 0


@njit(cache=True, nogil=True)
def solve(calls: Any, L: Array, B: Array, n_info: Array) -> None:
    """Replace the columns of B (n, m) by the solutions of L L' x = b."""
    n_info[0], n_info[2] = len(L), B.size // len(L)
    n = n_info.ctypes.data
    _call(
        calls[1],
        (_LETTERS.ctypes.data, n, n + 8, L.ctypes.data, n, B.ctypes.data, n, n + 4),
    )


@njit(cache=True, nogil=True)
def inverse(calls: Any, L: Array, n_info: Array) -> None:
    """Replace a Cholesky factor L by (L L')^-1.

    Blocks on the diagonal are inverted first, then pairs of neighbours are merged by triangular
    products, then L^-T L^-1 is formed.
    """
    size = len(L)
    letters, start, signs = _LETTERS.ctypes.data, L.ctypes.data, _SIGNS.ctypes.data
    n = n_info.ctypes.data
    n_info[0] = size
    for i in range(0, size, _BLOCK):
        n_info[2] = min(_BLOCK, size - i)
        _call(calls[2], (letters, letters + 1, n + 8, start + 8 * i * (size + 1), n, n + 4))
    width = _BLOCK
    while width < size:
        for i in range(0, size - width, 2 * width):
            n_info[2], n_info[3] = min(width, size - i - width), width
            first = start + 8 * i * (size + 1)
            second = start + 8 * (i + width) * (size + 1)
            below = first + 8 * width
            _call(
                calls[4],
                (letters, letters, letters + 1, letters + 1, n + 8, n + 12, signs, second, n,
                 below, n),
            )  # fmt: skip
            _call(
                calls[4],
                (letters + 2, letters, letters + 1, letters + 1, n + 8, n + 12, signs + 8, first,
                 n, below, n),
            )  # fmt: skip
        width *= 2
    _call(calls[3], (letters, n, start, n, n + 4))
