"""SmolLM2 tuned a little to prose, docstrings and code from Python itself: language models to merge.

They are made in minutes, once, and kept in the cache as folders that transformers loads.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from moopt.backend import cache, models
from moopt.backend.merging.tasks import TextLoss
from moopt.backend.text import SOURCES, Text
from moopt.errors import ProblemError
from moopt.whole import whole_folder

logger = logging.getLogger("moopt")

MODEL = "smollm2-135m"
STEPS, TOKENS, LENGTH, RATE = 50, 512, 128, 1e-4
"""Steps of a fine-tune, tokens of a step, tokens of a sequence, and the highest learning rate (one cycle)."""
UNSEEN = 16_384
"""Tokens at the beginning of the search split that nothing is tuned on: searches measure there."""


def tuned(kinds: Sequence[str] = tuple(SOURCES)) -> dict[str, str]:
    """The base, "base", and folders of models tuned from it to kinds of text, by kind.

    Args:
        kinds: Some of "prose", "docstrings" and "code".

    Raises:
        ProblemError: there is no such kind.
        ModelNotFound: the base is not installed; says how to get it.
    """
    if unknown := [kind for kind in kinds if kind not in SOURCES]:
        raise ProblemError(f"There is no kind of text {unknown[0]!r}; expected some of {', '.join(SOURCES)}.")
    return {"base": MODEL} | {kind: str(_made(kind)) for kind in kinds}


def tasks(kinds: Sequence[str] = tuple(SOURCES), tokens: int = 2048, context: int = 512) -> list[TextLoss]:
    """The loss on each kind of text, as objectives of a merge."""
    return [TextLoss(kind, kind, tokens, context) for kind in kinds]


def _made(kind: str) -> Path:
    """A model's folder; it is tuned if it is not in the cache."""
    recipe = [kind, models.identity(MODEL), Text(kind).identity, STEPS, TOKENS, LENGTH, RATE, UNSEEN, torch.__version__]
    digest = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]
    folder = cache.folder() / "texts" / f"{Path(MODEL).name}-{kind}-{digest}"
    if not folder.exists():
        logger.info("Tuning %s to %s: %d steps, some minutes, once.", MODEL, kind, STEPS)
        with whole_folder(folder) as temporary:
            tokenizer = models.load_tokenizer(MODEL)
            model = _trained(kind, tokenizer)
            model.to(torch.bfloat16).save_pretrained(temporary)
            tokenizer.save_pretrained(temporary)
    return folder


def _trained(kind: str, tokenizer: Any) -> Any:
    model, tokens = models.load_model(MODEL).float(), Text(kind).tokenized(tokenizer)
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    first = UNSEEN // TOKENS
    for step in range(STEPS):
        ids = tokens.batch("search", first + step, TOKENS, LENGTH)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        optimizer.zero_grad()
        cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        schedule.step()
    return model.eval().requires_grad_(False)
