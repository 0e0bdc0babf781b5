"""Exports as their users will run them: each format's own program, beside the original, on the held-out text."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moopt.backend import models
from moopt.backend.candidate import choose_type
from moopt.backend.quiet import at_work
from moopt.backend.text import Text
from moopt.exporting import Compared, Exporter

Logits = Callable[[Tensor], Tensor]
"""Takes a sequence [t] and gives its logits [t, v]."""


class Run(Exporter):
    """A format whose files can be run from here."""

    @abstractmethod
    def client(self, folder: Path, context: int) -> AbstractContextManager[Logits]:
        """The export in the program that it is for.

        Args:
            folder: The export.
            context: The tokens of a sequence.
        """

    def measure(self, folder: Path, compared: Compared) -> Mapping[str, float]:
        tokens = Text(compared.text).tokenized(models.load_tokenizer(compared.model))
        ids = tokens.batch("held-out", 0, compared.tokens, compared.context)
        device = torch.device("cpu")
        original = models.load_model(compared.model).to(choose_type(device))
        with at_work(device), torch.inference_mode(), self.client(folder, compared.context) as logits:
            found = torch.stack([_compared(original(input_ids=row[None]).logits[0], logits(row), row) for row in ids])
        kl, nll, agrees = found.mean(0).tolist()
        return {"kl": kl, "perplexity": float(torch.tensor(nll).exp()), "top1_agreement": agrees}


def _compared(original: Tensor, candidate: Tensor, ids: Tensor) -> Tensor:
    """KL divergence, negative log likelihood of what follows, and how often both agree, of one sequence."""
    p, q = original.float().log_softmax(-1), candidate.float().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean()
    nll = -q[:-1].gather(1, ids[1:, None]).mean()
    return torch.stack([kl, nll, (p.argmax(-1) == q.argmax(-1)).float().mean()]).double()


@contextmanager
def in_transformers(folder: Path) -> Iterator[Logits]:
    """A folder that transformers loads."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    yield lambda row: model(input_ids=row[None]).logits[0]
