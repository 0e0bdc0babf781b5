"""Takes a text through a model one block at a time, so that only the states between two blocks are held.

The model's own forward pass is run for each block: the blocks before it give what was kept of them, and it ends after
the block. So masks, positions and whatever else a family hands to its blocks are the family's own business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from moopt.backend.language import TOKENS_AT_ONCE

Resident = Callable[[int], AbstractContextManager[None]]
"""Opens with a block's number before the block runs, for a model whose blocks are not all in memory."""


def everything(stage: int) -> AbstractContextManager[None]:
    """Of a model that is held whole."""
    return nullcontext()


class Walk:
    """A text on its way through a model.

    Args:
        model: With weights.
        ids: Sequences [s, t], on the model's device.
        resident: Brings a block's weights, where the model is not held whole.
    """

    def __init__(self, model: Any, ids: Tensor, resident: Resident = everything) -> None:
        self._body = model.base_model
        self._options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        self._parts = ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))
        self._prefix, self.blocks = find_blocks(model)
        self._resident = resident
        self._states: list[Any] = []
        self._reached = 0

    @property
    def stages(self) -> int:
        """In how many steps the walk goes: one a block, or a single one where no blocks are found."""
        return max(1, len(self.blocks))

    def stage(self, name: str) -> int:
        """The step in which a module runs; the last one for what is in no block."""
        found = block_of(self._prefix, name)
        return self.stages - 1 if found is None else found

    def run(self, stage: int, after: Callable[[], None] | None = None) -> list[Any]:
        """Take the text through one block, and through those before it if it has not come so far.

        Args:
            stage: The block; the last one runs the rest of the body, too.
            after: Called after each part of the text.

        Returns:
            What the block gave for each part of the text; the last one, the last hidden states [s, t, k].
        """
        if self._reached > stage:
            self._states, self._reached = [], 0
        for number in range(self._reached, stage):
            self._step(number, None)
        found = self._step(stage, after)
        if self._reached == self.stages:
            self._states = []  # the walk is over: the next one begins anew
        return found

    def pass_on(self, stage: int, part: Tensor, before: Any) -> Any:
        """What one block gives for sequences, from what the one before gave; the last, the last hidden states."""
        states: list[Any] = []
        with _only(self.blocks, stage, before, states), contextlib.suppress(_Arrived):
            states.append(self._body(input_ids=part, **self._options).last_hidden_state)
        return states[0]

    def _step(self, stage: int, after: Callable[[], None] | None) -> list[Any]:
        states: list[Any] = []
        with self._resident(stage), torch.inference_mode():
            for number, part in enumerate(self._parts):
                states.append(self.pass_on(stage, part, self._states[number] if stage else None))
                if after is not None:
                    after()
        self._states, self._reached = states, stage + 1
        return states


def hidden_states(model: Any, ids: Tensor, resident: Resident) -> Iterator[Tensor]:
    """The last hidden states [n, k] of sequences [s, t], in order; each block is brought once for all of them."""
    walk = Walk(model, ids, resident)
    for states in walk.run(walk.stages - 1):
        yield states.reshape(-1, states.shape[-1])


class _Arrived(Exception):
    """The forward pass has done what it was run for."""


@contextlib.contextmanager
def _only(blocks: list[nn.Module], stage: int, before: Any, states: list[Any]) -> Iterator[None]:
    """While open, only one block runs: those before it give `before`, and what it gives goes to `states`."""

    def skip(*_: Any, **__: Any) -> Any:
        return before

    def stop(*_: Any, **__: Any) -> Any:
        raise _Arrived

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        states.append(output)

    for number, block in enumerate(blocks):
        if number != stage:
            block.forward = skip if number < stage else stop
    handle = blocks[stage].register_forward_hook(keep) if stage < len(blocks) - 1 else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
        for number, block in enumerate(blocks):
            if number != stage:
                del block.forward


def find_blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The one list of blocks that a model's body is, and its name; none where there are several."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return (outer[0], list(lists[outer[0]])) if len(outer) == 1 else ("", [])


def block_of(prefix: str, name: str) -> int | None:
    """The number of the block that a module or parameter is in; None if it is in none.

    Args:
        prefix: The name of the list of blocks.
        name: Of the module or parameter.
    """
    found = re.match(rf"{re.escape(prefix)}\.(\d+)\.", name) if prefix else None
    return int(found[1]) if found else None
