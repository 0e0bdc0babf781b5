"""Long-context tasks: a model that remembers gets all of them right, one that does not none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from moopt.backend.kv.tasks import Copy, Needle
from moopt.errors import MetricError


class Remembering:
    """Continues a prompt by what followed when its end was there before, if it remembers so far back."""

    device = torch.device("cpu")

    def __init__(self, reach: int) -> None:
        self.reach = reach

    def generate(self, ids: torch.Tensor, max_new_tokens: int, **how: Any) -> torch.Tensor:
        assert how["do_sample"] is False
        assert how["attention_mask"].shape == ids.shape
        said = ids[0].tolist()
        for _ in range(max_new_tokens):
            end, recent = said[-6:], said[-self.reach :]
            found = [i for i in range(len(recent) - 6) if recent[i : i + 6] == end]
            said.append(recent[found[-1] + 6] if found else 65)
        return torch.tensor([said])


@pytest.mark.parametrize(
    "task", [Needle(context=400, count=4), Copy(context=400, count=3, asked=16)], ids=lambda t: t.name
)
def test_who_remembers_finds_everything(task: Any, byte_tokenizer: Any) -> None:
    assert task.measure(Remembering(10_000), byte_tokenizer) == 1
    assert task.measure(Remembering(20), byte_tokenizer) < 0.2
    assert task.direction == "max"
    assert task.describe()["context"] == 400


def test_who_remembers_less_finds_what_is_near(byte_tokenizer: Any) -> None:
    found = [Needle(context=400, count=5).measure(Remembering(reach), byte_tokenizer) for reach in (60, 200, 10_000)]
    assert found[0] < found[1] < found[2] == 1


def test_the_same_prompts_come_again(byte_tokenizer: Any) -> None:
    class Listening(Remembering):
        def __init__(self) -> None:
            super().__init__(10_000)
            self.heard: list[list[int]] = []

        def generate(self, ids: torch.Tensor, max_new_tokens: int, **how: Any) -> torch.Tensor:
            self.heard.append(ids[0].tolist())
            return super().generate(ids, max_new_tokens, **how)

    heard = []
    for seed in (0, 0, 1):
        listening = Listening()
        Needle(context=300, count=3, seed=seed).measure(listening, byte_tokenizer)
        heard.append(listening.heard)
    assert heard[0] == heard[1] != heard[2]
    assert {len(prompt) for prompt in heard[0]} == {300}
    assert len({tuple(np.array(prompt)[:50]) for prompt in heard[0]}) == 3


def test_numbers_that_cannot_be_are_refused_before_a_search() -> None:
    for task in (Needle, Copy):
        for bad in ({"context": 0}, {"context": 2048.0}, {"count": 0}, {"seed": -1}):
            with pytest.raises(MetricError, match="expected a whole number from"):
                task(**bad)
    with pytest.raises(MetricError, match="Got asked=0; expected a whole number from 1"):
        Copy(asked=0)


def test_too_short_a_context_is_refused(byte_tokenizer: Any) -> None:
    with pytest.raises(MetricError, match="Got a context of 50 tokens; the needle alone takes"):
        Needle(context=50).measure(Remembering(10), byte_tokenizer)
    with pytest.raises(MetricError, match="Got a context of 32 tokens for a copy of 32"):
        Copy(context=32).measure(Remembering(10), byte_tokenizer)
