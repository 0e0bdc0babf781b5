"""Takes a text through a model one block at a time, so that only the states between two blocks are held.

The model's own forward pass is run for each block: the blocks before it give what was kept of them, and it ends after
the block. So masks, positions and whatever else a family hands to its blocks are the family's own business.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from moopt.backend.language import TOKENS_AT_ONCE


class Walk:
    """A text on its way through a model.

    Args:
        model: With weights.
        ids: Sequences [s, t], on the model's device.
    """

    def __init__(self, model: Any, ids: Tensor) -> None:
        self._body = model.base_model
        self._options = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        self._parts = ids.split(max(1, TOKENS_AT_ONCE // ids.shape[1]))
        self._prefix, self.blocks = _blocks(model)
        self._states: list[Any] = []
        self._reached = 0

    @property
    def stages(self) -> int:
        """In how many steps the walk goes: one a block, or a single one where no blocks are found."""
        return max(1, len(self.blocks))

    def stage(self, name: str) -> int:
        """The step in which a module runs; the last one for what is in no block."""
        found = re.match(rf"{re.escape(self._prefix)}\.(\d+)\.", name) if self._prefix else None
        return int(found[1]) if found else self.stages - 1

    def run(self, stage: int, after: Callable[[], None] | None = None) -> None:
        """Take the text through one block, and through those before it if it has not come so far.

        Args:
            stage: The block; the last one runs the rest of the body, too.
            after: Called after each part of the text.
        """
        if self._reached > stage:
            self._states, self._reached = [], 0
        for number in range(self._reached, stage):
            self._step(number, None)
        self._step(stage, after)

    @torch.inference_mode()
    def _step(self, stage: int, after: Callable[[], None] | None) -> None:
        states: list[Any] = []
        for number, part in enumerate(self._parts):
            before = self._states[number] if stage else None
            with _only(self.blocks, stage, before, states), contextlib.suppress(_Arrived):
                self._body(input_ids=part, **self._options)
            if after is not None:
                after()
        self._states, self._reached = states, stage + 1


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


def _blocks(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """The one list of blocks that a model's body is, and its name; none where there are several."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return (outer[0], list(lists[outer[0]])) if len(outer) == 1 else ("", [])
