"""What browsers have been told, so that they are told only what is new."""

from __future__ import annotations

import hashlib
import threading
from typing import Any

from moopt.dashboard.patches import dumped, patch

KEPT = 4
"""Answers to one question that are remembered: a browser that has an older one is told everything."""


class Sent:
    """The last answers to one question, by their tags."""

    def __init__(self) -> None:
        self._answers: dict[str, Any] = {}
        self._lock = threading.Lock()

    def since(self, tag: str | None, answer: Any) -> dict[str, Any]:
        """An answer for a browser that has the one of `tag`.

        Returns:
            Its own `tag`, and either `whole`, the `patch` that turns the other into it, or neither if it is the same.
        """
        text = dumped(answer)
        now = hashlib.sha256(text.encode()).hexdigest()[:16]
        with self._lock:
            known = self._answers.get(tag or "")
            self._answers.pop(now, None)
            self._answers[now] = answer
            while len(self._answers) > KEPT:
                del self._answers[next(iter(self._answers))]
        if now == tag:
            return {"tag": now}
        found = None if known is None else patch(known, answer)
        if found is None or len(dumped(found)) >= len(text):
            return {"tag": now, "whole": answer}
        return {"tag": now, "patch": found}
