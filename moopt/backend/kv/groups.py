"""From a profile to what is searched: pairs that a layer may have, and layers that have theirs together (KVTuner)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.sparse import csgraph
from scipy.spatial import distance

from moopt import pareto
from moopt.backend.kv.pairs import Pair
from moopt.errors import BackendError

if TYPE_CHECKING:
    from moopt.backend.kv.profiling import Profile

Clusters = Literal["dbscan", "none"]
LEAST = 1e-9
"""What errors count as at least, where their logarithms are compared."""


@dataclass(frozen=True)
class Group:
    """Layers that have their pair together.

    Attributes:
        layers: Their numbers.
        pairs: What they choose from, fewest bits first.
    """

    layers: tuple[int, ...]
    pairs: tuple[Pair, ...]

    @property
    def name(self) -> str:
        """Such as "0", or "3-5,9" for layers 3, 4, 5 and 9."""
        found: list[str] = []
        for _, run in itertools.groupby(enumerate(self.layers), lambda each: each[1] - each[0]):
            numbers = [number for _, number in run]
            found.append(f"{numbers[0]}-{numbers[-1]}" if len(numbers) > 1 else str(numbers[0]))
        return ",".join(found)


def prune(profile: Profile, error: str = "fisher") -> list[tuple[Pair, ...]]:
    """The pairs of each layer that no other beats in bits and error, fewest bits first: [layers].

    Args:
        profile: What pairs do.
        error: By which of its errors.
    """
    bits = np.array([pair.bits for pair in profile.pairs])
    kept = [np.flatnonzero(pareto.nondominated(np.column_stack([bits, row]))) for row in profile.of(error)]
    return [tuple(profile.pairs[place] for place in places) for places in kept]


def cluster(
    profile: Profile, pruned: Sequence[tuple[Pair, ...]], eps: float = 0.2, error: str = "fisher",
    clusters: Clusters = "dbscan", layers: Sequence[int] | None = None,
) -> list[Group]:  # fmt: skip
    """Layers that choose from the same pairs and whose errors are alike, together; every layer is in one group.

    Layers are together where a chain of neighbours links them, no two of which are further apart than `eps`: DBSCAN
    with groups from two layers on. A layer without neighbours is a group by itself.

    Distances are root mean squares over pairs of the difference of logarithms to base 10, as errors of all layers span
    the same decades: 0.2 is a factor of 1.6. The paper's are Euclidean, of `e_o` itself, with an eps of 0.05, within
    which no two layers of SmolLM2-135M are: such means hang on the smallest outputs.

    Args:
        profile: What pairs do.
        pruned: The pairs of each layer.
        eps: How far neighbours may be apart.
        error: Which of its errors.
        clusters: "none" makes every layer a group by itself.
        layers: The layers to group; None: all.

    Raises:
        BackendError: the pairs are of other layers or not in the profile, or `eps` or `clusters` is none.
    """
    if len(pruned) != len(profile):
        raise BackendError(f"Got the pairs of {len(pruned)} layers; the profile has {len(profile)}.")
    if missing := [pair for pairs in pruned for pair in pairs if pair not in profile.pairs]:
        raise BackendError(f"Got the pair {missing[0]}; the profile has {', '.join(map(str, profile.pairs))}.")
    if not isinstance(eps, (int, float)) or not eps >= 0:
        raise BackendError(f"Got eps={eps!r}; expected a number from 0.")
    if clusters not in ("dbscan", "none"):
        raise BackendError(f"Got clusters={clusters!r}; expected 'dbscan' or 'none'.")
    alike: dict[tuple[Pair, ...], list[int]] = {}
    for layer in range(len(pruned)) if layers is None else layers:
        alike.setdefault(tuple(pruned[layer]), []).append(layer)
    groups = []
    for pairs, own in alike.items():
        columns = [profile.pairs.index(pair) for pair in pairs]
        errors = np.log10(np.maximum(profile.of(error)[np.ix_(own, columns)], LEAST))
        apart = distance.squareform(distance.pdist(errors)) / np.sqrt(len(pairs))
        count, labels = csgraph.connected_components(apart <= (eps if clusters == "dbscan" else -1), directed=False)
        members = [np.array(own)[labels == label] for label in range(count)]
        groups += [Group(tuple(map(int, each)), pairs) for each in members]
    return sorted(groups, key=lambda group: group.layers)


def check(groups: Sequence[Group], layers: Sequence[int]) -> None:
    """Refuse groups that do not have every one of the layers once.

    Raises:
        BackendError: says which layer is missing, or there twice, or none.
    """
    found = [layer for group in groups for layer in group.layers]
    if twice := sorted({layer for layer in found if found.count(layer) > 1}):
        raise BackendError(f"Layer {twice[0]} is in several groups; expected every layer in one.")
    if missing := sorted(set(layers) - set(found)):
        raise BackendError(f"Layer {missing[0]} is in no group; expected every layer in one.")
    if unknown := sorted(set(found) - set(layers)):
        raise BackendError(f"Layer {unknown[0]} is none whose cache can be packed; those are {list(layers)}.")


def of_mapping(groups: Mapping[str, Sequence[Any]] | Sequence[Any]) -> list[Group]:
    """Groups as people write them: pairs by the names that groups have, such as {"0": ["KV8", "KV4"], "1-29": ["KV4"]}.

    Raises:
        BackendError: a name or its pairs are no such thing.
    """
    if not isinstance(groups, Mapping):
        if isinstance(groups, (list, tuple)) and all(isinstance(group, Group) for group in groups):
            return list(groups)
        raise BackendError(
            f"Got the groups {groups!r}; expected Groups, or pairs by layers: {{'0-3': ['KV8', 'KV4']}}."
        )
    found = []
    for name, pairs in groups.items():
        parts = [part.partition("-") for part in str(name).split(",")]
        if not all(a.isdecimal() and (not dash or b.isdecimal()) for a, dash, b in parts) or not isinstance(
            pairs, list | tuple
        ):
            raise BackendError(f"Got the group {name!r}: {pairs!r}; expected such as '0-3,7': ['KV8', 'KV4'].")
        layers = [number for a, dash, b in parts for number in range(int(a), int(b if dash else a) + 1)]
        ordered = sorted({Pair.of(each) for each in pairs}, key=lambda pair: (pair.bits, pair))
        if not layers or not ordered:
            raise BackendError(f"The group {name!r} has no layers or no pairs; expected at least one of each.")
        found.append(Group(tuple(layers), tuple(ordered)))
    return found
