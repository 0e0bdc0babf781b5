"""The linear algebra of small matrices on one thread: on few cores more threads make it several times slower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from threadpoolctl import ThreadpoolController


@contextmanager
def one_thread() -> Iterator[None]:
    """While open, or in the function that it decorates, numpy's and scipy's products take one thread."""
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _libraries() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 - its libraries are to be loaded

    return ThreadpoolController()
