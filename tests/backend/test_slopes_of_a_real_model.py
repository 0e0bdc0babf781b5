"""The table of a gradient of SmolLM2-135M against its KL, measured with real weights moved a little to each option."""

from __future__ import annotations

import numpy as np
import torch

from moopt.backend import language, models, quantizers, sensitivity, weights
from moopt.backend.candidate import Candidate
from moopt.backend.taps import Decision
from moopt.backend.text import Text

OPTIONS = (3, 4, 8)
STEP = 0.05
"""The share of the way to an option: a central difference is off by its square, rounding by its inverse."""
MOVED = "model.layers.29."


def test_slopes_of_smollm2_are_finite_differences_of_its_kl() -> None:
    model = models.load_model("smollm2-135m")
    inventory = weights.inventory(model)
    candidate = Candidate(model, inventory.weights, quantizers.RTN(), 64, torch.device("cpu"), torch.float32)
    linears = [w for w in inventory.linears() if w.name.startswith(MOVED)]
    decisions = [Decision(members, OPTIONS) for members in weights.groups(linears, "fused").values()]
    ids = Text("prose").tokenized(models.load_tokenizer("smollm2-135m")).draws("search", 32, 16, seed=0)
    head = language.head_of(model)
    reference = language.observe(model, ids, head, head)
    candidate.use({w.name: 4 for w in linears})
    _, linear, _ = sensitivity.gradient(candidate, decisions, head, reference, seed=0)
    assert (linear[:, 1] == 0).all()

    def kl(decision: Decision, option: int, step: float) -> float:
        """The KL with a decision's weights a step of the way from 4 bits to an option."""
        for w in decision.weights:
            moved = candidate.weight(w.name, 4).lerp(candidate.weight(w.name, option), step)
            weights.module_of(model, w).weight.data = moved
        found = float(language.compare(model, reference, head).kl.double().mean())
        for w in decision.weights:
            weights.module_of(model, w).weight.data = candidate.weight(w.name, 4)
        return found

    with candidate.differentiable():  # dense weights, which can be anywhere between two options
        for row, decision in enumerate(decisions):
            for column, option in ((0, 3), (2, 8)):
                slope = (kl(decision, option, STEP) - kl(decision, option, -STEP)) / (2 * STEP)
                assert np.isclose(linear[row, column], slope, rtol=0.01, atol=1e-5)
