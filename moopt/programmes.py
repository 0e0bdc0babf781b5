"""Exact integer programmes on additive tables, by HiGHS: several resources at once, and decisions that are tied.

With one resource and no ties it is a knapsack: `moopt.budgets` answers all budgets of that in one pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Real
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from moopt.errors import BudgetError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Number = TypeVar("Number", np.float64, np.int64)

LARGEST_LOSS = 1000.0
"""What the losses are scaled to: HiGHS stops within an absolute gap of 1e-6."""
INFEASIBLE = 2
"""What scipy's `milp` calls a programme without a solution."""
BASE = 1000
"""In which large costs are added up: HiGHS tells sums apart by a millionth of their largest term."""
MOST_UNITS = 2**53
"""What all decisions may cost together, so that sums of 64 bits stay exact."""


class Programme:
    """One option a decision, least total loss, every resource within its budget, tied decisions alike.

    HiGHS works in floating point. So costs are added up digit by digit, and what it finds is checked in integers: a
    budget is never exceeded, and the choice is the best to a billionth of the losses' range.

    Args:
        table: The loss of each option, [decisions, options]; inf where there is none.
        resources: What each option takes of each resource, by the resource's name, [decisions, options]; whole numbers,
            -1 where there is no option. Latency is one like bytes, in nanoseconds.
        ties: Groups of decisions, by their rows, that must take the same option, as HAWQ-V3 (Yao et al. 2021) ties
            layers whose outputs a residual connection adds.

    Raises:
        BudgetError: shapes that differ, NaN, costs that are not whole or too large to be added up, ties that are no
            rows, or a decision without an option.
    """

    def __init__(
        self, table: npt.ArrayLike, resources: Mapping[str, npt.ArrayLike], ties: Sequence[Sequence[int]] = ()
    ) -> None:
        if not resources:
            raise BudgetError("Got no resources; expected at least one, as a table of costs by its name.")
        tables = {name: checked(table, costs) for name, costs in resources.items()}
        self.resources: dict[str, IntArray] = {name: costs for name, (_, costs) in tables.items()}
        losses = np.maximum.reduce([losses for losses, _ in tables.values()])  # inf where any resource has no option
        self._group = _groups(len(losses), ties)
        self._losses = _summed(losses, self._group)
        self._possible = np.isfinite(self._losses)
        if (empty := np.flatnonzero(~self._possible.any(axis=1))).size:
            rows = ", ".join(map(str, np.flatnonzero(self._group == empty[0])))
            raise BudgetError(f"No option is there for decision {rows}; expected one with a loss, shared by tied ones.")
        costs = np.stack([_summed(np.maximum(c, 0), self._group) for c in self.resources.values()])
        floor = np.where(self._possible, costs, np.iinfo(np.int64).max).min(axis=2)
        extra = np.where(self._possible, costs - floor[:, :, None], 0)
        self._units: IntArray = np.maximum(np.gcd.reduce(extra, axis=(1, 2)), 1)
        self._extra: IntArray = extra // self._units[:, None, None]
        self._least: IntArray = floor.sum(axis=1)
        self._most: IntArray = self._least + extra.max(axis=2).sum(axis=1)

    def at(self, budgets: Mapping[str, int]) -> IntArray:
        """The option of each decision, [decisions], that loses least within all budgets.

        Args:
            budgets: One for each resource, by its name, in its unit.

        Raises:
            BudgetError: no configuration keeps them all; it says what each resource takes at least and at most.
        """
        if set(budgets) != set(self.resources):
            raise BudgetError(
                f"Got budgets of {', '.join(budgets)}; expected one of each: {', '.join(self.resources)}."
            )
        asked = np.array([whole_budget(budgets[name], f" of {name}") for name in self.resources], dtype=object)
        rooms = (np.clip(asked, self._least - 1, self._most).astype(np.int64) - self._least) // self._units
        choice = solve(self._losses, self._extra, rooms)
        if choice is None:
            raise BudgetError(self._refusal(budgets, rooms))
        return choice[self._group]

    def costs(self, choice: npt.ArrayLike) -> dict[str, int]:
        """What a choice [decisions] takes of each resource."""
        taken = np.asarray(choice)[:, None]
        return {name: int(np.take_along_axis(costs, taken, axis=1).sum()) for name, costs in self.resources.items()}

    def _refusal(self, budgets: Mapping[str, int], rooms: IntArray) -> str:
        """Why no configuration keeps these budgets: the range of each resource, alone and beside the other budgets."""
        ranges = []
        for r, name in enumerate(self.resources):
            found = f"{name} takes {self._least[r]} to {self._most[r]}"
            if len(self.resources) > 1:
                others = [i for i in range(len(rooms)) if i != r]
                takes = np.where(self._possible, self._extra[r], np.inf)
                choice = solve(takes, self._extra[others], rooms[others])
                if choice is None:
                    found += ", and the other budgets cannot be kept"
                else:
                    units = np.take_along_axis(self._extra[r], choice[:, None], axis=1).sum()
                    found += f", at least {self._least[r] + units * self._units[r]} within the other budgets"
            ranges.append(found)
        asked = ", ".join(f"{name} <= {budgets[name]}" for name in self.resources)
        return f"Got {asked}; no configuration keeps that. {'; '.join(ranges)}."


def solve(losses: FloatArray, extra: IntArray, rooms: IntArray) -> IntArray | None:
    """The option of each decision, [decisions], that loses least within rooms; None if there is none.

    Args:
        losses: [decisions, options]; inf where there is none.
        extra: What each option takes of each resource above the decision's cheapest, [resources, decisions, options].
        rooms: How much of each resource may be taken, [resources].
    """
    if not len(losses):
        return np.zeros(0, dtype=np.int64) if (rooms >= 0).all() else None
    allowed = np.isfinite(losses) & (extra <= rooms[:, None, None]).all(axis=0)
    if not allowed.any(axis=1).all():
        return None
    rows, options = np.nonzero(allowed)
    worse = (losses - np.where(allowed, losses, np.inf).min(axis=1, keepdims=True))[rows, options]
    takes = extra[:, rows, options]
    sums, most = _by_digits(takes, rooms)
    carries = sums.shape[1] - len(rows)
    one_each = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), shape=(len(losses), sums.shape[1]))
    found = milp(
        np.pad(worse * (LARGEST_LOSS / (worse.max() or 1.0)), (0, carries)),
        integrality=np.ones(sums.shape[1]),
        bounds=Bounds(0, np.repeat([1, np.inf], [len(rows), carries])),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(sums, -np.inf, most)],
        options={"mip_rel_gap": 0.0},
    )
    if found.status == INFEASIBLE:
        return None
    if found.x is None:
        raise BudgetError(f"HiGHS found no allocation: {found.message}")
    taken = found.x[: len(rows)] > 0.5
    choice = np.empty(len(losses), dtype=np.int64)
    choice[rows[taken]] = options[taken]
    if (takes[:, taken].sum(axis=1) > rooms).any():
        raise BudgetError("HiGHS found no allocation that keeps the budgets to the unit; give costs in coarser units.")
    return choice


def _by_digits(takes: IntArray, rooms: IntArray) -> tuple[FloatArray, FloatArray]:
    """Limits whose numbers are all small, that options keep if and only if they keep the rooms.

    Each resource is added up digit by digit, with what is carried to the next one as a further variable.

    Returns:
        What each option, [..., :n], and each carry takes, [digits of all resources, n + carries], and at most may.
    """
    digits, carries, most = list[FloatArray](), list[FloatArray](), list[int]()
    for row, room in zip(takes, np.minimum(rooms, takes.sum(axis=1)), strict=True):
        count = 1 + int(math.log(max(int(row.max(initial=0)), 1), BASE))
        powers = BASE ** np.arange(count)
        of_row, of_room = row // powers[:, None], room // powers
        of_row[:-1] %= BASE
        of_room[:-1] %= BASE
        digits.append(of_row)
        carries.append(np.eye(count, count - 1, -1) - BASE * np.eye(count, count - 1))
        most += of_room.tolist()
    return np.hstack([np.vstack(digits), block_diag(*carries)]), np.array(most, dtype=float)


def checked(table: npt.ArrayLike, costs: npt.ArrayLike) -> tuple[FloatArray, IntArray]:
    """Losses and costs as arrays [decisions, options], the losses inf where there is no option.

    Raises:
        BudgetError: shapes that differ, NaN, or costs that are not whole numbers.
    """
    losses, given = _numbers("table", table), _numbers("costs", costs)
    if losses.shape != given.shape or losses.ndim != 2:
        raise BudgetError(
            f"Got a table of shape {losses.shape} and costs of shape {given.shape}; expected both [decisions, options]."
        )
    if (odd := given[~(np.isfinite(given) & (given == np.floor(given)))]).size:
        raise BudgetError(f"Got the cost {odd[0]}; expected whole numbers, in a finer unit if need be.")
    if given.max(initial=0) * len(given) >= MOST_UNITS:
        raise BudgetError(f"Got the cost {given.max()}, too large to be added up; expected costs in a coarser unit.")
    whole = np.array(costs).astype(np.int64)
    if np.isnan(losses).any():
        raise BudgetError("The table has NaN in it; expected losses, or inf where there is no option.")
    losses[(whole < 0) | np.isinf(losses)] = np.inf
    return losses, whole


def whole_budget(given: object, of: str = "") -> int:
    """The whole number that a budget comes to, rounded down.

    Raises:
        BudgetError: it is no finite number.
    """
    with suppress(OverflowError, ValueError):
        if not isinstance(given, bool) and isinstance(given, Real):
            return cast(int, math.floor(given))
    raise BudgetError(f"Got the budget {given!r}{of}; expected a finite number, in the unit of the costs.")


def _numbers(name: str, given: npt.ArrayLike) -> FloatArray:
    try:
        return np.array(given, dtype=float)
    except (TypeError, ValueError) as error:
        raise BudgetError(f"The {name} cannot be read as numbers: {error}; expected [decisions, options].") from None


def _groups(decisions: int, ties: Sequence[Sequence[int]]) -> IntArray:
    """The group that each decision is in, [decisions], numbered from 0."""
    labels = np.arange(decisions)
    for tie in ties:
        rows = np.asarray(tie)
        whole = np.issubdtype(rows.dtype, np.integer) and rows.ndim == 1 and rows.size
        if not whole or rows.min() < 0 or rows.max() >= decisions:
            raise BudgetError(f"Got the tie {tie!r}; expected rows of decisions, 0 to {decisions - 1}.")
        labels[np.isin(labels, labels[rows])] = labels[rows].min()
    groups: IntArray = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    return groups


def _summed(table: npt.NDArray[Number], group: IntArray) -> npt.NDArray[Number]:
    """The rows of each group added up, [groups, options]."""
    total = np.zeros((int(group.max(initial=-1)) + 1, table.shape[1]), dtype=table.dtype)
    np.add.at(total, group, table)
    return total
