"""Tasks that need what was read long ago, made here from text and a seed: metrics for long contexts.

Both let the model generate, from packed keys and values where `KVCachePrecision` measures them, and ask for numbers
that nobody could guess.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from moopt.backend.metrics import When
from moopt.backend.text import Text
from moopt.errors import MetricError

DIGITS = 5


@dataclass(frozen=True)
class Needle:
    """The share of hidden numbers that are found again: one sentence with a number in a long text of something else.

    Attributes:
        context: Tokens of a prompt.
        count: Prompts; the sentence comes at places from the beginning to the end.
        seed: Of the numbers.
        text: What surrounds them, by the name of a source.
        when: "every" makes it an objective of the search; "finalists" measures only the front, at the end.

    Raises:
        MetricError: a number is none that there can be.
    """

    context: int = 2048
    count: int = 8
    seed: int = 0
    text: str = "prose"
    when: When = "finalists"
    name: str = "needle"
    direction: Literal["min", "max"] = "max"
    unit: str = ""

    def __post_init__(self) -> None:
        _check(self.seed, context=self.context, count=self.count)

    def measure(self, model: nn.Module, tokenizer: Any) -> float:
        """The mean share of digits, from the left, that come out right.

        Raises:
            MetricError: the prompt has no room for the sentence, or the text is too short.
        """
        rng = np.random.default_rng(self.seed)
        around = Text(self.text).tokenized(tokenizer).batch("held-out", 0, self.context * self.count, self.context)
        found = []
        for number, filler in enumerate(around):
            secret = "".join(map(str, rng.integers(0, 10, DIGITS)))
            ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in _parts(secret)]
            room = self.context - sum(map(len, ids))
            if room < 1:
                raise MetricError(
                    f"Got a context of {self.context} tokens; the needle alone takes {sum(map(len, ids))}."
                )
            at = number * room // max(self.count - 1, 1)
            prompt = [*filler[:at].tolist(), *ids[0], *filler[at:room].tolist(), *ids[1]]
            said = tokenizer.decode(_continued(model, torch.tensor([prompt]), 2 * DIGITS)[0]).strip()
            right = [a == b for a, b in zip(said, secret, strict=False)]
            found.append((right.index(False) if False in right else len(right)) / DIGITS)
        return float(np.mean(found))

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        return asdict(self)


@dataclass(frozen=True)
class Copy:
    """The share of tokens that are copied right: a list of random tokens comes twice, the second time not to its end.

    Attributes:
        context: Tokens of a prompt.
        count: Prompts.
        asked: Tokens that are to be copied of each.
        seed: Of the tokens.
        when: "every" makes it an objective of the search; "finalists" measures only the front, at the end.

    Raises:
        MetricError: a number is none that there can be.
    """

    context: int = 2048
    count: int = 4
    asked: int = 32
    seed: int = 0
    when: When = "finalists"
    name: str = "copy"
    direction: Literal["min", "max"] = "max"
    unit: str = ""

    def __post_init__(self) -> None:
        _check(self.seed, context=self.context, count=self.count, asked=self.asked)

    def measure(self, model: nn.Module, tokenizer: Any) -> float:
        """The share of the tokens asked for that come out right.

        Raises:
            MetricError: the prompt is too short to say anything twice.
        """
        size = (self.context + self.asked) // 2
        if size <= self.asked:
            raise MetricError(f"Got a context of {self.context} tokens for a copy of {self.asked}; expected more.")
        special = set(tokenizer.all_special_ids)
        words = np.array([token for token in range(len(tokenizer)) if token not in special])
        listed = np.random.default_rng(self.seed).choice(words, (self.count, size))
        prompts = torch.from_numpy(np.concatenate([listed, listed[:, : -self.asked]], 1))
        said = [_continued(model, prompt[None], self.asked)[0].numpy() for prompt in prompts]
        return float(np.mean([a == b for a, b in zip(said, listed[:, -self.asked :], strict=True)]))

    def describe(self) -> dict[str, Any]:
        """JSON for a study's identity."""
        return asdict(self)


def _check(seed: int, **counts: int) -> None:
    """Refuse what would fail only when a search has ended and finalists are measured."""
    for name, value, least in (("seed", seed, 0), *((name, value, 1) for name, value in counts.items())):
        if type(value) is not int or value < least:
            raise MetricError(f"Got {name}={value!r}; expected a whole number from {least}.")


def _parts(secret: str) -> tuple[str, str]:
    return (
        f"\nThe secret number of the lighthouse is {secret}. Remember it.\n",
        "\nThe secret number of the lighthouse is",
    )


@torch.inference_mode()
def _continued(model: Any, ids: Tensor, tokens: int) -> Tensor:
    """The likeliest tokens after a prompt, always as many."""
    out = model.generate(
        ids.to(model.device), attention_mask=torch.ones_like(ids).to(model.device), max_new_tokens=tokens,
        min_new_tokens=tokens, do_sample=False, pad_token_id=0,
    )  # fmt: skip
    found: Tensor = out[:, ids.shape[1] :].cpu()
    return found
