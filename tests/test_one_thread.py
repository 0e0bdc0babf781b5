from __future__ import annotations

import numpy as np
import scipy.linalg  # noqa: F401 - its libraries are to be loaded
from threadpoolctl import threadpool_info, threadpool_limits

import moopt
from moopt.one_thread import one_thread
from moopt.testing.landscapes import Landscape


def blas() -> list[int]:
    """The threads of every linear algebra library that is loaded."""
    return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]


def test_products_take_one_thread_while_it_is_open() -> None:
    np.ones((2, 2)) @ np.ones((2, 2))
    with threadpool_limits(2, "blas"):
        with one_thread():
            assert set(blas()) == {1}
        assert set(blas()) == {2}


def test_a_search_thinks_on_one_thread_and_evaluates_on_all() -> None:
    seen: list[list[int]] = []

    class Watched(Landscape):
        def evaluate(self, config, fidelity):
            seen.append(blas())
            return super().evaluate(config, fidelity)

    with threadpool_limits(2, "blas"):
        moopt.Study("s", Watched(), "qnehvi").run(14)
        assert set(blas()) == {2}
    assert all(set(threads) == {2} for threads in seen)
