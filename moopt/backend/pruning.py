"""Dropping a token's weaker experts while a mixture runs (MC-MoE's online dynamic pruning, Huang et al. 2024).

Of a token's experts those are dropped whose weight is below a threshold times that of its first. Tokens that matter are
protected: those with the largest ||t||_1 times attention received. Only the least sensitive blocks are pruned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from moopt.backend import language
from moopt.backend.blocks import block_of, find_blocks
from moopt.backend.evaluator import LanguageEvaluator, Measured
from moopt.backend.experts import found_in, separate
from moopt.backend.options import Options
from moopt.errors import BackendError
from moopt.problem import Fidelity

PROTECTED = 0.02
"""The share of a sequence's tokens that keep all their experts."""
ATTENTION = ("self_attn", "attention", "attn")
"""What families call the attention of a block."""


class Pruning:
    """While open, a mixture drops experts of its tokens, and the experts that run are counted.

    What is dropped is not computed. The weights that are kept are scaled to the sum they had together. To find the
    tokens to protect, attention runs in its plain form, which holds all weights [heads, t, t] of a sequence, in every
    block; without protection it runs as ever. Of so few tokens that the share is less than one, none is protected: so
    none that is generated one by one.

    Args:
        model: Whose experts are taken apart, as `moopt.backend.models.load_model` does.
        thresholds: 0 (drops nothing) to 1, for each block that is pruned, by the name of its experts: see
            `calibrated_thresholds`.
        protect: The share of each sequence's tokens that keep all their experts.

    Raises:
        BackendError: no experts, no such block, or numbers that are not between 0 and 1.
    """

    def __init__(self, model: Any, thresholds: Mapping[str, float], protect: float = PROTECTED) -> None:
        self._model, self._experts = model, found_in(model)
        if unknown := [name for name in thresholds if name not in self._experts]:
            raise BackendError(f"Got a threshold for {unknown[0]!r}; expected some of {', '.join(self._experts)}.")
        for name, value in {**thresholds, "protect": protect}.items():
            if not 0 <= value <= 1:
                raise BackendError(f"Got {value} for {name}; expected a number from 0 to 1.")
        self._thresholds = {name: value for name, value in thresholds.items() if value > 0}
        self._protect = protect if self._thresholds else 0.0
        self._rest, self._each = _sizes(model)
        self._received: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        self._form = ""
        self._ran = dict.fromkeys(self._experts, 0)
        self._tokens = dict.fromkeys(self._experts, 0)

    def __enter__(self) -> Pruning:
        self._handles = [m.register_forward_pre_hook(self._prune(name)) for name, m in self._experts.items()]
        try:
            if self._protect:
                for name in self._thresholds:
                    self._handles.append(self._attention(name).register_forward_hook(self._keep(name)))
                self._form = self._model.config._attn_implementation
                self._model.set_attn_implementation("eager")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        if self._form:
            self._model.set_attn_implementation(self._form)
        self._handles, self._received, self._form = [], {}, ""

    @property
    def active_experts(self) -> dict[str, float]:
        """How many experts a token went through in each block, on average over all that ran while open.

        Raises:
            BackendError: nothing ran.
        """
        if not all(self._tokens.values()):
            raise BackendError("No text went through the model while experts were counted; run it inside the `with`.")
        return {name: ran / self._tokens[name] for name, ran in self._ran.items()}

    @property
    def active_parameters(self) -> float:
        """Parameters that a token went through, on average: all but the experts', and those of the experts that ran."""
        return self._rest + sum(count * self._each[name] for name, count in self.active_experts.items())

    def _prune(self, name: str) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
        threshold, none = self._thresholds.get(name, 0.0), len(self._experts[name])

        def prune(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
            states, chosen, weighed = inputs
            keep = kept(weighed, threshold)
            if (received := self._received.pop(name, None)) is not None:
                keep |= protected(states.view(*received.shape, -1), received, self._protect).view(-1, 1)
            self._ran[name] += int(keep.sum())
            self._tokens[name] += len(chosen)
            if keep.all():
                return inputs
            return states, chosen.masked_fill(~keep, none), renormalised(weighed, keep)

        return prune

    def _keep(self, name: str) -> Callable[..., None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if output[1] is None:
                raise BackendError(f"{type(module).__name__} does not give its weights: prune with protect=0.")
            self._received[name] = attention_received(output[1])

        return keep

    def _attention(self, name: str) -> nn.Module:
        """The attention of the block that has these experts."""
        prefix, blocks = find_blocks(self._model)
        number = block_of(prefix, name)
        for own in ATTENTION if number is not None else ():
            if isinstance(module := getattr(blocks[number or 0], own, None), nn.Module):
                return module
        raise BackendError(
            f"The block of {name} has no attention named {', '.join(ATTENTION)}: tokens that matter cannot be told. "
            "Prune with protect=0."
        )


def kept(weighed: Tensor, threshold: float) -> Tensor:
    """Which experts of each token stay, [n, j]: of the weights [n, j] those not below threshold times the largest."""
    wide = weighed.float()
    return wide >= threshold * wide.amax(-1, keepdim=True)


def renormalised(weighed: Tensor, keep: Tensor) -> Tensor:
    """Weights [n, j], 0 for those that are not kept, the others scaled to the sum that all had."""
    wide = weighed.float()
    left = wide * keep
    return (left * (wide.sum(-1, keepdim=True) / left.sum(-1, keepdim=True))).to(weighed.dtype)


def attention_received(attention: Tensor) -> Tensor:
    """How much attention each token gets, [s, t], on average over heads and over the queries that can see it.

    The weights are summed over queries and divided by L - k for the token k of L. (Summed over keys, as in the code
    that was published with the paper, they are 1 for every token.)

    Args:
        attention: Weights [s, heads, t queries, keys]; the queries are the last t of the keys.
    """
    length = attention.shape[-2]
    seeing = torch.arange(length, 0, -1, device=attention.device)
    received: Tensor = attention[..., -length:].float().mean(1).sum(1) / seeing
    return received


def protected(states: Tensor, received: Tensor, share: float) -> Tensor:
    """Which tokens matter most, [s, t]: of each sequence the share with the largest ||t||_1 times attention received.

    Args:
        states: What the experts read, [s, t, k].
        received: The attention received, [s, t].
        share: Of the tokens; rounded down.
    """
    importance = states.float().abs().sum(-1) * received
    top = importance.topk(int(share * importance.shape[1]), dim=1).indices
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(1, top, True)


@torch.inference_mode()
def calibrated_thresholds(
    model: Any, ids: Tensor, quantile: float = 0.5, run: language.Run = language.hidden_states
) -> dict[str, float]:
    """A threshold for each block: a quantile of the second weight over the first on a text, by its experts' name.

    The median, as in the paper, drops the second experts of half of the tokens.

    Args:
        model: The original.
        ids: Sequences [s, t].
        quantile: The share of the tokens that would lose their second expert.
        run: How a text is taken through the model.
    """
    ratios: dict[str, list[Tensor]] = {name: [] for name in found_in(model)}
    handles = []
    for name, module in found_in(model).items():

        def add(module: nn.Module, inputs: tuple[Tensor, Tensor, Tensor], own: list[Tensor] = ratios[name]) -> None:
            if inputs[2].shape[-1] < 2:
                raise BackendError("Each token goes to one expert: there is none to drop.")
            first, second = inputs[2].float().topk(2, dim=-1).values.unbind(-1)
            own.append(second / first)

        handles.append(module.register_forward_pre_hook(add))
    try:
        for _ in run(model, ids):
            pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: float(np.quantile(torch.cat(own).cpu().numpy(), quantile)) for name, own in ratios.items()}


def losses_alone(
    model: Any, ids: Tensor, thresholds: Mapping[str, float], protect: float = PROTECTED,
    run: language.Run = language.hidden_states,
) -> dict[str, float]:  # fmt: skip
    """What pruning each block alone does: mean KL to the model as it is, nats per token, by the experts' name.

    It takes a forward pass, and one for each block.
    """
    head = language.head_of(model)
    reference = language.observe(model, ids, head, head, run)
    found = {}
    for name, threshold in thresholds.items():
        with Pruning(model, {name: threshold}, protect):
            found[name] = float(language.compare(model, reference, head, run).kl.double().mean())
    return found


def least_sensitive(
    thresholds: Mapping[str, float], losses: Mapping[str, float], blocks: int | float = 10
) -> dict[str, float]:
    """The thresholds of the blocks that lose least when pruned alone.

    Args:
        thresholds: By the name of a block's experts.
        losses: The same names: see `losses_alone`.
        blocks: How many, or, as a fraction such as 0.5, which share of them; the paper's ten by default.
    """
    share = isinstance(blocks, float)
    if isinstance(blocks, bool) or not (0 <= blocks <= 1 if share else blocks >= 0):
        raise BackendError(f"Got blocks={blocks!r}; expected a whole number from 0, or a share from 0.0 to 1.0.")
    count = round(blocks * len(thresholds)) if share else int(blocks)
    chosen = sorted(thresholds, key=losses.__getitem__)[:count]
    return {name: value for name, value in thresholds.items() if name in chosen}


def measure(
    evaluator: LanguageEvaluator, options: Options, fidelity: Fidelity, thresholds: Mapping[str, float],
    protect: float = PROTECTED,
) -> Measured:  # fmt: skip
    """Measure a candidate that is pruned while it runs, against the original that is not.

    Args:
        evaluator: Of the model.
        options: Of the candidate's matrices, by name.
        fidelity: The text.
        thresholds: Of the blocks that are pruned.
        protect: The share of each sequence's tokens that keep all their experts.

    Returns:
        What the evaluator measures, and among its values `active_parameters`, in millions a token.
    """
    evaluator.use(options)
    candidate = evaluator.candidate
    if candidate.streams:  # nothing may be calibrated while the original is pruned, too
        candidate.prepare({name: (option,) for name, option in candidate.current.items()})
    _, extra = evaluator.reference(fidelity, evaluator.ids(fidelity))
    with Pruning(candidate.model, thresholds, protect) as pruning:
        found = evaluator.measure(options, fidelity)
    values = {**found.values, "active_parameters": pruning.active_parameters / 1e6}
    return replace(found, values=values, tokens=found.tokens + extra)


def _sizes(model: Any) -> tuple[int, dict[str, int]]:
    """All parameters that are no experts', and those of one expert of each block, by the name of its experts.

    They are counted on an outline, as matrices that run from packed codes are no parameters any more.
    """
    with torch.device("meta"):
        outline = type(model)(copy.deepcopy(model.config))
    outline.tie_weights()
    experts = found_in(separate(outline))
    each = {name: sum(p.numel() for p in module[0].parameters()) for name, module in experts.items()}
    total = sum(p.numel() for p in outline.parameters())
    return total - sum(len(module) * each[name] for name, module in experts.items()), each
