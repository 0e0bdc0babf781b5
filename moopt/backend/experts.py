"""Mixture-of-experts models: every expert as linear layers of its own, which read only the tokens it is given.

transformers holds the experts of a block stacked, gate_up_proj [e, 2m, k] and down_proj [e, k, m]. Taken apart, the
matrices of an expert are linear layers like others: inventory, calibration, kernels and files need know nothing more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from moopt.errors import BackendError

AS_EXPECTED = {
    "has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True,
    "has_post_expert_norm": False, "_is_expert_parallel": False,
}  # fmt: skip
"""What transformers notes of stacked experts whose forward pass is that of `Experts`."""


class Expert(nn.Module):
    """A gated feed-forward network, down(act(gate(x)) * up(x)).

    Attributes:
        tokens: The places in the batch of what it read last.
    """

    def __init__(self, gate: Tensor, up: Tensor, down: Tensor, activation: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = _linear(gate), _linear(up), _linear(down)
        self.act_fn = activation
        self.tokens: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """[n, k] -> [n, k]."""
        found: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return found


class Experts(nn.ModuleList):
    """In place of the stacked experts of a block.

    Args:
        stacked: What transformers has; the matrices share its memory.
    """

    def __init__(self, stacked: Any) -> None:
        gates, ups = stacked.gate_up_proj.data.chunk(2, dim=1)
        parts = zip(gates, ups, stacked.down_proj.data, strict=True)
        super().__init__(Expert(gate, up, down, stacked.act_fn) for gate, up, down in parts)

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """[n, k], and the experts [n, j] of each token with their weights [n, j] -> [n, k]."""
        found = torch.zeros_like(hidden_states)
        for number, expert in enumerate(self):
            place, tokens = torch.where(top_k_index.T == number)
            if len(tokens):
                expert.tokens = tokens
                weighed = expert(hidden_states[tokens]) * top_k_weights[tokens, place, None]
                found.index_add_(0, tokens, weighed.to(found.dtype))
        return found


def separate(model: Any) -> Any:
    """Take the stacked experts of a model apart, in place; those of another form stay as they are."""
    for name, module in list(model.named_modules()):
        if _is_stacked(module):
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Experts(module).train(module.training))
    return model


def found_in(model: nn.Module) -> dict[str, Experts]:
    """The experts of each block of a model that was taken apart, by their name, in the model's order.

    Raises:
        BackendError: it has none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, Experts)}
    if not found:
        raise BackendError(
            f"{type(model).__name__} has no experts that are taken apart; expected a mixture of experts such as "
            "Mixtral, OLMoE or Qwen2-MoE, as moopt.backend.models.load_model or experts.separate gives it."
        )
    return found


def _is_stacked(module: nn.Module) -> bool:
    stacked = all(getattr(getattr(module, name, None), "ndim", 0) == 3 for name in ("gate_up_proj", "down_proj"))
    plain = getattr(getattr(type(module), "_apply_gate", None), "__name__", "") == "_default_apply_gate"
    return stacked and plain and all(getattr(module, name, None) == value for name, value in AS_EXPECTED.items())


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer
