"""How a text uses the experts of a mixture, and what fewer bits of an expert do to its block: what MC-MoE weighs.

The programme that takes these numbers is in `moopt.mixtures`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from moopt.backend.blocks import Walk
from moopt.backend.candidate import Candidate
from moopt.backend.experts import Expert, Experts, found_in
from moopt.backend.options import Option
from moopt.errors import BackendError

FloatArray = npt.NDArray[np.float64]

ROUTERS = ("gate", "router")
"""What families call the module beside the experts that gives (logits, weights, chosen experts)."""
ROUNDING = 0.02
"""How far shares of routing weights may be from those of the logits' softmax, by rounding to 16 bits."""


@dataclass(frozen=True)
class Routing:
    """The experts of one block on one text.

    Attributes:
        name: Of the module that holds the experts.
        activations: The share of the tokens that each expert is given, [experts].
        weights: Its routing weight, before those of a token are normalised, summed over the tokens it is given and
            divided by all tokens, [experts].
        errors: The Frobenius norm over all tokens of what the block's output is off by, with that expert alone at that
            option, [experts, options].
    """

    name: str
    activations: FloatArray
    weights: FloatArray
    errors: FloatArray

    def options(self, each: Sequence[Option]) -> dict[str, Option]:
        """The option of every matrix, by its name, from one for each expert."""
        if len(each) != len(self.activations):
            raise BackendError(f"Got {len(each)} options; expected one for each of {len(self.activations)} experts.")
        parts = ("gate_proj", "up_proj", "down_proj")
        return {f"{self.name}.{number}.{part}": option for number, option in enumerate(each) for part in parts}


def measure(candidate: Candidate, ids: Tensor, options: Sequence[Option]) -> list[Routing]:
    """Take a text through the original once, block by block, and each expert's tokens through its variants.

    Args:
        candidate: It becomes the original, and is left so.
        ids: Sequences [s, t], on the candidate's device.
        options: The columns of the errors: widths, or other options the candidate has.

    Returns:
        One for each block that has experts, in the model's order.

    Raises:
        BackendError: the model has no experts, or its router is of another form.
    """
    candidate.use({})
    experts, found = found_in(candidate.model), []
    walk = Walk(candidate.model, ids, candidate.resident)
    for stage in range(walk.stages):
        seen = {name: _Seen(module) for name, module in experts.items() if walk.stage(name) == stage}
        if not seen:
            continue
        with _watched(candidate.model, seen):
            walk.run(stage)
        with torch.inference_mode():
            found += [_routing(candidate, name, each, ids.numel(), options) for name, each in seen.items()]
    return found


@dataclass
class _Seen:
    """What the experts of a block were given, part by part of the text: n tokens of which each has j experts.

    Attributes:
        experts: The module.
        states: [n, k].
        chosen: [n, j].
        weights: As they weigh the experts' outputs, [n, j].
        logits: The router's, [n, experts].
    """

    experts: Experts
    states: list[Tensor] = field(default_factory=list)
    chosen: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)


@contextmanager
def _watched(model: nn.Module, seen: dict[str, _Seen]) -> Iterator[None]:
    """While open, what routers and experts are given is kept."""
    handles = []
    for name, each in seen.items():

        def route(module: nn.Module, inputs: tuple[Tensor], output: tuple[Tensor, ...], each: _Seen = each) -> None:
            each.logits.append(output[0])

        def enter(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], each: _Seen = each) -> None:
            for kept, given in zip((each.states, each.chosen, each.weights), inputs, strict=True):
                kept.append(given)

        handles += [_router(model, name).register_forward_hook(route), each.experts.register_forward_pre_hook(enter)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _router(model: nn.Module, name: str) -> nn.Module:
    """The router beside the experts of that name."""
    parent = model.get_submodule(name.rpartition(".")[0])
    for own in ROUTERS:
        if isinstance(router := getattr(parent, own, None), nn.Module):
            return router
    raise BackendError(
        f"{type(parent).__name__} has no router named {' or '.join(ROUTERS)} beside its experts: how it weighs them "
        "cannot be measured."
    )


def _routing(candidate: Candidate, name: str, seen: _Seen, tokens: int, options: Sequence[Option]) -> Routing:
    """The figures of one block, from what was seen."""
    states, chosen, weights = torch.cat(seen.states), torch.cat(seen.chosen), torch.cat(seen.weights)
    probable = torch.cat(seen.logits).float().softmax(-1).gather(1, chosen)
    _check(name, probable, weights)
    experts = len(seen.experts)
    routed = torch.zeros(experts, dtype=torch.float64, device=states.device)
    routed.index_add_(0, chosen.flatten(), probable.double().flatten())
    counts = chosen.flatten().bincount(minlength=experts)
    errors = np.zeros((experts, len(options)))
    for number in range(experts):
        rows, places = torch.where(chosen == number)
        if len(rows):
            expert, own = f"{name}.{number}", (states[rows], weights[rows, places, None])
            exact = _output(candidate, expert, seen.experts[number], *own, None)
            for column, option in enumerate(options):
                changed = _output(candidate, expert, seen.experts[number], *own, option)
                errors[number, column] = float((changed - exact).norm())
    return Routing(name, (counts / tokens).double().cpu().numpy(), (routed / tokens).cpu().numpy(), errors)


def _check(name: str, probable: Tensor, weights: Tensor) -> None:
    """Refuse a router whose weights are not, up to a factor for each token, the softmax of its logits."""
    given = weights.float()
    apart = (probable / probable.sum(-1, keepdim=True) - given / given.sum(-1, keepdim=True)).abs().max()
    if not apart < ROUNDING:
        raise BackendError(
            f"The routing weights of {name} are not those of a softmax over its experts (off by {apart:.2f}): MC-MoE's "
            "weights cannot be measured for this family."
        )


def _output(
    candidate: Candidate, name: str, expert: nn.Module, states: Tensor, weights: Tensor, option: Option | None
) -> Tensor:
    """What an expert at an option adds to its block's output, [n, k], in float32."""
    assert isinstance(expert, Expert)
    gate, up, down = (candidate.weight(f"{name}.{part}", option) for part in ("gate_proj", "up_proj", "down_proj"))
    hidden: Tensor = expert.act_fn(states @ gate.T) * (states @ up.T)
    return (hidden @ down.T * weights).float()
