"""What turns one answer into the next, so that a browser that has the one is sent no more than what is new.

A patch is JSON, and one of:

- `{"set": value}`: the value itself;
- `{"runs": [run, ...]}`: a list of runs, each `[start, count]` of the old one or `{"items": [...]}`;
- `{"each": [[place, patch], ...]}`: the old list, those of its members changed;
- `{"keys": {key: patch}, "gone": [key, ...]}`: the old mapping, those of its values changed or left out.

`static/patch.js` applies them.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

Patch = dict[str, Any]


def patch(old: Any, new: Any) -> Patch | None:
    """What turns a value into another, both JSON; None if they are the same."""
    if type(old) is type(new) and old == new and dumped(old) == dumped(new):  # for Python, True is 1
        return None
    if isinstance(old, dict) and isinstance(new, dict):
        return _of_mappings(old, new)
    if isinstance(old, list) and isinstance(new, list):
        return _of_lists(old, new)
    return {"set": new}


def dumped(value: Any) -> str:
    """A value as it is sent."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _of_mappings(old: Mapping[str, Any], new: Mapping[str, Any]) -> Patch:
    changed = {key: {"set": value} for key, value in new.items() if key not in old}
    changed |= {key: found for key in old if key in new and (found := patch(old[key], new[key])) is not None}
    return {"keys": changed, "gone": [key for key in old if key not in new]}


def _of_lists(old: Sequence[Any], new: Sequence[Any]) -> Patch:
    """The shortest of what says it."""
    ways: list[Patch] = [{"set": new}, {"runs": _runs([_key(v) for v in old], [_key(v) for v in new], new)}]
    if len(old) == len(new) and any(isinstance(value, (dict, list)) for value in new):
        both = enumerate(zip(old, new, strict=True))
        ways.append({"each": [[at, found] for at, (a, b) in both if (found := patch(a, b)) is not None]})
    return min(ways, key=lambda way: len(dumped(way)))


def _runs(old: Sequence[Any], keys: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """The members of `new` as stretches of the old list, and what is in none of them."""
    places: dict[Any, list[int]] = {}
    for at, key in enumerate(old):
        places.setdefault(key, []).append(at)
    runs: list[Any] = []
    after = 0  # the last stretch taken from the old list
    for key, value in zip(keys, new, strict=True):
        found = places.get(key)
        if found is None:
            if not runs or not isinstance(runs[-1], dict):
                runs.append({"items": []})
            runs[-1]["items"].append(value)
            continue
        ahead = bisect_left(found, after)
        at = found[ahead] if ahead < len(found) else found[0]
        if at == after and runs and isinstance(runs[-1], list):
            runs[-1][1] += 1
        else:
            runs.append([at, 1])
        after = at + 1
    return runs


def _key(value: Any) -> Any:
    """What equal members have in common."""
    return (type(value), dumped(value) if isinstance(value, (dict, list)) else value)
