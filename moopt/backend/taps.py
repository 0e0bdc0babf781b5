"""A forward pass whose backward passes show each linear layer's weight gradient of every sequence, one layer at a time.

Linears are tapped as the backward pass goes by; neither weight gradients nor logits are ever held for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from moopt.backend.blocks import Walk
from moopt.backend.candidate import Candidate
from moopt.backend.options import Option
from moopt.backend.weights import Weight, module_of

SEQUENCE = 128
"""Tokens of a sequence: short ones give more independent samples for the same cost."""
AT_ONCE = 6
"""Sequences of one backward pass."""


@dataclass(frozen=True)
class Decision:
    """Weights that change together, and how each may be stored, in the order of the bytes that takes."""

    weights: tuple[Weight, ...]
    options: tuple[Option, ...]

    @cached_property
    def count(self) -> int:
        """How many numbers its weights have."""
        return sum(weight.count for weight in self.weights)


Look = Callable[[int, Weight, Tensor], None]
"""Takes the decision's row, the weight, and dL_s/dW of every sequence, [s, n, k]."""


class Forward:
    """A forward pass of a candidate on sequences [s, t] whose backward passes show weight gradients."""

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision], ids: Tensor) -> None:
        self._candidate, self._decisions, self._ids = candidate, decisions, ids

    def __enter__(self) -> Forward:
        model = self._candidate.model
        self._handles = [
            module_of(model, weight).register_forward_hook(self._tap(row, weight))
            for row, decision in enumerate(self._decisions)
            for weight in decision.weights
            if weight.kind == "linear"
        ]
        kind = _ByBlocks if self._candidate.streams else _AtOnce
        try:
            self._pass: _ByBlocks | _AtOnce | None = kind(self._candidate, self._ids)
        except BaseException:
            self.__exit__()
            raise
        self.states = self._pass.output.detach().reshape(-1, self._pass.output.shape[-1])
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._pass = None  # the graph's hooks lead back here: no garbage collector sees a cycle through them

    def backward(self, gradient: Tensor, look: Look, *, again: bool = False, together: bool = False) -> None:
        """Show the weight gradients for dL/dh = gradient [n, k] of the last hidden states to `look`.

        Args:
            gradient: dL/dh.
            look: What they are shown to.
            again: Whether another backward pass follows.
            together: Whether all sequences count as one, which is faster where their sum is all that matters.
        """
        assert self._pass is not None, "The forward pass is over."
        self._look, self._together = look, together
        self._pass.backward(gradient.view_as(self._pass.output), again)

    def _tap(self, row: int, weight: Weight) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        expert = self._candidate.model.get_submodule(weight.name.rpartition(".")[0])

        def tap(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if not output.requires_grad:  # a pass that only finds the states between blocks
                return
            x, tokens = inputs[0].detach(), getattr(expert, "tokens", None)
            output.register_hook(lambda g: self._show(row, weight, self._placed(x, tokens), self._placed(g, tokens)))

        return tap

    @torch.no_grad()
    def _placed(self, rows: Tensor, tokens: Tensor | None) -> Tensor:
        """Rows [s, t, k] of the batch; an expert's rows [n, k] at the places of its tokens, zeros elsewhere."""
        if tokens is None:
            return rows
        placed = rows.new_zeros(self._ids.numel(), rows.shape[-1])
        return placed.index_copy_(0, tokens, rows).view(*self._ids.shape, -1)

    @torch.no_grad()
    def _show(self, row: int, weight: Weight, x: Tensor, g: Tensor) -> None:
        s = 1 if self._together else len(x)
        rows, columns = g.reshape(s, -1, g.shape[-1]), x.reshape(s, -1, x.shape[-1])
        self._look(row, weight, torch.bmm(rows.transpose(1, 2), columns))


class _AtOnce:
    """The graph of the whole body, from the embedded tokens on."""

    def __init__(self, candidate: Candidate, ids: Tensor) -> None:
        model = candidate.model
        with _embedding_as_leaf(model) as leaves, _differentiated():
            self.output: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        self._embedded = leaves[0]

    def backward(self, gradient: Tensor, again: bool) -> None:
        torch.autograd.grad(self.output, self._embedded, gradient, retain_graph=again)


class _ByBlocks:
    """The states between blocks; each block is run again for its part of the backward pass."""

    def __init__(self, candidate: Candidate, ids: Tensor) -> None:
        self._candidate, self._ids, self._walk = candidate, ids, Walk(candidate.model, ids)
        self._before: list[Any] = [None]
        for stage in range(self._walk.stages):
            with candidate.resident(stage), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
                self._before.append(self._walk.pass_on(stage, ids, self._before[-1]))
        self.output: Tensor = self._before.pop()

    def backward(self, gradient: Tensor, again: bool) -> None:
        for stage in reversed(range(self._walk.stages)):
            with self._candidate.resident(stage), _embedding_as_leaf(self._candidate.model) as leaves:
                if stage:
                    leaves = [self._before[stage].detach().requires_grad_()]
                with _differentiated():
                    found = self._walk.pass_on(stage, self._ids, leaves[0] if stage else None)
                (gradient,) = torch.autograd.grad(found, leaves[0], gradient)


@contextmanager
def _differentiated() -> Iterator[None]:
    # For short sequences the plain attention's backward pass is faster than the fused one's.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


@contextmanager
def _embedding_as_leaf(model: Any) -> Iterator[list[Tensor]]:
    """While open, graphs begin at the embedded tokens, which go to a list."""
    leaves: list[Tensor] = []

    def leaf(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handle = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        yield leaves
    finally:
        handle.remove()


class Slopes:
    """Looks at gradients and adds up <dL_s/dW, W(b) - W(now)> in `found` [decisions, sequences, options]."""

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision], sequences: int) -> None:
        self._candidate, self._decisions = candidate, decisions
        self.found = torch.zeros(len(decisions), sequences, widest(decisions))

    def __call__(self, row: int, weight: Weight, gradients: Tensor) -> None:
        options = self._decisions[row].options
        deltas = changes(self._candidate, weight, options)
        slopes = (deltas @ gradients.flatten(1).T).float().T
        self.found[row, :, : len(options)] += slopes.cpu()


class ColumnSquares:
    """Looks at gradients and adds up the squares of <dL_s/dW[:, k], (W(b) - W(now))[:, k]> over columns and sequences.

    A column k is an input of the layer. What is found is in `found`, [decisions, options].
    """

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision]) -> None:
        self._candidate, self._decisions = candidate, decisions
        self.found = torch.zeros(len(decisions), widest(decisions), dtype=torch.float64)

    def __call__(self, row: int, weight: Weight, gradients: Tensor) -> None:
        options = self._decisions[row].options
        deltas = changes(self._candidate, weight, options).view(-1, *gradients.shape[1:])
        outputs, products = gradients.new_ones(1, gradients.shape[1]), torch.empty_like(gradients)
        squares = []
        for delta in deltas:  # a product with ones is faster than a sum
            squares.append((outputs @ torch.mul(gradients, delta, out=products)).float().square().sum())
        self.found[row, : len(options)] += torch.stack(squares).double().cpu()


def changes(candidate: Candidate, weight: Weight, options: Sequence[Option]) -> Tensor:
    """W(b) - W(now) of every option, [options, n * k]."""
    now = candidate.weight(weight.name, candidate.current.get(weight.name))
    found = now.new_empty(len(options), *now.shape)
    for row, option in zip(found, options, strict=True):
        torch.sub(candidate.weight(weight.name, option), now, out=row)
    return found.flatten(1)


def widest(decisions: Sequence[Decision]) -> int:
    """The most options that a decision has."""
    return max(len(d.options) for d in decisions)
