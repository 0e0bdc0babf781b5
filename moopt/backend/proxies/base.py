"""What a proxy is: a table of what each single change of width might do to the loss, and its cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from moopt.backend.evaluator import Evaluator
from moopt.backend.taps import SEQUENCE, Decision

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """What a table is asked for.

    Attributes:
        decisions: The rows; their options are the columns.
        tokens: How much text to use, in tokens.
        probe: Tokens of an evaluation: what measures single changes uses no more than these.
        seed: Of the text that is drawn and of all that is random.
    """

    decisions: tuple[Decision, ...]
    tokens: int
    probe: int
    seed: int = 0

    def sequences(self, evaluator: Evaluator) -> Tensor:
        """The text, [s, t], from the split for searching."""
        ids = evaluator.tokens.draws("search", self.tokens, SEQUENCE, seed=self.seed)
        return ids.to(evaluator.candidate.device)


@dataclass(frozen=True)
class Proxy:
    """A way to guess what each single change of width does to the loss.

    Attributes:
        name: What users call it.
        summary: What it computes, in a line, with its source.
        table: [decisions, options], inf where a decision has fewer options. The candidate comes as the original and
            may be left as anything.
        cost: Forward tokens that the table takes at most; a backward pass counts two.
        usual: Tokens of text that make a table worth having.
        language_only: Whether it needs a vocabulary.
        linears_only: Whether it knows nothing of embeddings and heads.
        in_loss: Whether a table is in the loss's own unit, nats per token for a language model.
        whole: Whether it needs a model that is held whole.
    """

    name: str
    summary: str
    table: Callable[[Request, Evaluator], FloatArray]
    cost: Callable[[Request], int]
    usual: int
    language_only: bool = True
    linears_only: bool = True
    in_loss: bool = True
    whole: bool = False
