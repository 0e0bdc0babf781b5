"""What is sent of an answer when a browser has another already."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from moopt.dashboard.patches import Patch, dumped, patch
from moopt.dashboard.sent import KEPT, Sent

SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-1, 1) | st.sampled_from(["", "a", "[1]"])
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from("abc"), inner), max_leaves=20
)


def applied(old: Any, found: Patch | None) -> Any:
    """What `static/patch.js` does."""
    if found is None:
        return old
    if "set" in found:
        return found["set"]
    if "runs" in found:
        runs = found["runs"]
        return [v for r in runs for v in (r["items"] if isinstance(r, dict) else old[r[0] : r[0] + r[1]])]
    if "each" in found:
        changed = dict(map(tuple, found["each"]))
        return [applied(value, changed.get(at)) for at, value in enumerate(old)]
    kept = {key: value for key, value in old.items() if key not in found["gone"]}
    return kept | {key: applied(kept.get(key), change) for key, change in found["keys"].items()}


@given(JSON, JSON)
def test_a_patch_turns_the_old_into_the_new(old: Any, new: Any) -> None:
    found = patch(old, new)
    sent = None if found is None else json.loads(dumped(found))
    assert json.loads(dumped(applied(old, sent))) == json.loads(dumped(new))
    assert (found is None) == (dumped(old) == dumped(new))


@given(st.lists(st.floats(0, 1), unique=True, min_size=200, max_size=300), st.integers(0, 150))
def test_what_grows_and_what_moves_costs_little(values: list[float], at: int) -> None:
    new = [*values[:at], 2.0, *values[at:at + 40], *values[at + 41:], 3.0]  # fmt: skip
    found = patch({"x": values, "name": "front"}, {"x": new, "name": "front"})
    assert len(dumped(found)) < 120


def test_only_what_a_browser_has_not_is_sent() -> None:
    sent, answer = Sent(), {"x": list(range(1000)), "title": "front"}
    first = sent.since(None, answer)
    assert first["whole"] == answer
    assert sent.since(first["tag"], {**answer}) == {"tag": first["tag"]}
    more = {**answer, "x": [*answer["x"], 1000]}
    second = sent.since(first["tag"], more)
    assert applied(answer, second["patch"]) == more
    assert "whole" in sent.since("unknown", more)


def test_a_browser_that_is_far_behind_is_told_everything() -> None:
    sent = Sent()
    tags = [sent.since(None, {"x": [n] * 50})["tag"] for n in range(KEPT + 1)]
    assert "whole" in sent.since(tags[0], {"x": [9] * 50})
