"""How kernels that make no array are compiled: without counting references to the arrays that they are given.

Function -> numba's compiled function. In a function with a branch numba counts a reference on the way in and one on the way out, each an atomic
operation: 9 ns of the 11 that hashing a word took. Arrays are borrowed from the caller, so what is compiled so must not make, keep or return
one; numba refuses to compile a function that makes one.

Source: numba `core/compiler.py`, the flag `nrt` (numba's run time, which owns memory).
"""

from typing import Any

import numba


def borrowing(function: Any) -> Any:
    """numba.njit for a function of borrowed arrays that returns numbers or nothing."""
    return numba.njit(cache=True, _nrt=False)(function)  # type: ignore[call-overload]
