"""A forward pass whose backward passes show each linear layer's weight gradient of every sequence, one layer at a time.

Linears are tapped as the backward pass goes by; neither weight gradients nor logits are ever held for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from moopt.backend.candidate import Candidate
from moopt.backend.simulated import Option
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


Look = Callable[[int, Weight, Tensor], None]
"""Takes the decision's row, the weight, and dL_s/dW of every sequence, [s, n, k]."""


class Forward:
    """A forward pass of a candidate on sequences [s, t] whose backward passes show gradients to `look`."""

    def __init__(self, candidate: Candidate, decisions: Sequence[Decision], ids: Tensor, look: Look) -> None:
        self._candidate, self._decisions, self._ids, self._look = candidate, decisions, ids, look

    def __enter__(self) -> Forward:
        model = self._candidate.model
        self._handles = [
            module_of(model, weight).register_forward_hook(self._tap(row, weight))
            for row, decision in enumerate(self._decisions)
            for weight in decision.weights
            if weight.kind == "linear"
        ]
        handle = model.get_input_embeddings().register_forward_hook(self._leaf)
        try:
            # For short sequences the plain attention's backward pass is faster than the fused one's.
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                self._graph = model.base_model(input_ids=self._ids, use_cache=False).last_hidden_state
        except BaseException:
            self.__exit__()
            raise
        finally:
            handle.remove()
        self.states = self._graph.detach().reshape(-1, self._graph.shape[-1])
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def backward(self, gradient: Tensor, *, again: bool = False) -> None:
        """Show the weight gradients for dL/dh = gradient [n, k] of the last hidden states."""
        torch.autograd.grad(self._graph, self._embedded, gradient.view_as(self._graph), retain_graph=again)

    def _tap(self, row: int, weight: Weight) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def tap(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            x = inputs[0].detach()
            output.register_hook(lambda g: self._show(row, weight, x, g))

        return tap

    @torch.no_grad()
    def _show(self, row: int, weight: Weight, x: Tensor, g: Tensor) -> None:
        s = len(x)
        rows, columns = g.reshape(s, -1, g.shape[-1]), x.reshape(s, -1, x.shape[-1])
        self._look(row, weight, torch.bmm(rows.transpose(1, 2), columns))

    def _leaf(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        self._embedded = output.detach().requires_grad_()
        return self._embedded


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

    def taken(self) -> Tensor:
        """What was found since the last time."""
        found, self.found = self.found, torch.zeros_like(self.found)
        return found


def changes(candidate: Candidate, weight: Weight, options: Sequence[Option]) -> Tensor:
    """W(b) - W(now) of every option, [options, n * k]."""
    now = candidate.weight(weight.name, candidate.current.get(weight.name))
    found = now.new_empty(len(options), *now.shape)
    for row, bits in zip(found, options, strict=True):
        torch.sub(candidate.weight(weight.name, bits), now, out=row)
    return found.flatten(1)


def widest(decisions: Sequence[Decision]) -> int:
    """The most options that a decision has."""
    return max(len(d.options) for d in decisions)
