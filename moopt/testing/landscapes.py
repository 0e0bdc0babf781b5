"""Problems for the suites: small, exact and without a model. Not for benchmarks: see `moopt_problems.synthetic`."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from moopt.problem import Constraint, Evaluation, Fidelity, Objective, Problem, Resources
from moopt.space import Choice, Config, Float, Integer, Ordinal, Space

LEVELS = Space({f"layer{i}": Ordinal(2, 3, 4, 8) for i in range(6)})
"""4,096 configurations of ordered levels."""

MIXED = Space(
    {
        "x": Float(-1, 2),
        "bits": Ordinal(2, 3, 4, 8),
        "kind": Choice("a", "b", "c"),
        "n": Integer(1, 9),
        "only": Ordinal(4),
    }
)
"""Every kind of variable, and one that leaves no choice."""

TINY = Space({"bits": Ordinal(2, 3, 4), "kind": Choice("a", "b")})
"""6 configurations."""


TIED = Space({"first": Ordinal(2, 3, 4), "kind": Choice("a", "b"), "last": Ordinal(2, 3, 4)})
"""18 configurations, 6 of which `Tied` accepts."""


class Landscape(Problem):
    """Bowls: objective j is the squared distance of the encoded configuration to a point of its own.

    Args:
        space: What to search.
        objectives: How many.
        known: Whether the last objective is known; it then is the mean of the codes, each scaled to [0, 1].
        constraint: Whether that mean must be at most `bound`: "known" from `known`, "measured" by `evaluate`.
        behaviour: "constant" objectives, "failing" with NaN everywhere, or "flaky": with NaN for every third level sum.
        bound: Of the constraint: few configurations drawn at random are below 0.2, none is below 0.
    """

    def __init__(
        self,
        space: Space = LEVELS,
        objectives: int = 2,
        known: bool = False,
        constraint: Literal["known", "measured"] | None = None,
        behaviour: Literal["plain", "constant", "failing", "flaky"] = "plain",
        bound: float = 0.6,
    ) -> None:
        self.space, self.behaviour = space, behaviour
        self.objectives: Sequence[Objective] = [
            Objective(f"f{j}", direction="max" if j == 1 else "min", known=known and j == objectives - 1)
            for j in range(objectives)
        ]
        self.constraints = [Constraint("mean", bound)] if constraint else []
        self._known_mean = constraint == "known"

    def known(self, config: Config) -> Mapping[str, float]:
        mean = self._mean(config)
        found = {o.name: mean * o.sign for o in self.objectives if o.known}
        return found | ({"mean": mean} if self._known_mean else {})

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        scaled = self._scaled(config)
        values = {
            o.name: o.sign * float(((scaled - j / len(self.objectives)) ** 2).mean())
            for j, o in enumerate(self.objectives)
            if not o.known
        }
        if self.behaviour == "constant":
            values = dict.fromkeys(values, 1.0)
        if self.behaviour == "failing" or (self.behaviour == "flaky" and int(self.space.encode(config).sum()) % 3 == 0):
            values = dict.fromkeys(values, float("nan"))
        if self.constraints and not self._known_mean:
            values["mean"] = self._mean(config)
        return Evaluation(values)

    def _mean(self, config: Config) -> float:
        return float(self._scaled(config).mean())

    def _scaled(self, config: Config) -> npt.NDArray[np.float64]:
        span = self.space.upper - self.space.lower
        scaled: npt.NDArray[np.float64] = (self.space.encode(config) - self.space.lower) / np.where(span > 0, span, 1)
        return scaled


class Tied(Landscape):
    """Accepts what gives the last decision the value of the first; `repair` does."""

    def repair(self, config: Config, rng: np.random.Generator) -> Config:
        first, *_, last = self.space.names
        return {**config, last: config[first]}


class Sequences(Problem):
    """Additive losses that are means over sequences, each sequence with sensitivities of its own; sizes are known.

    Args:
        layers: How many decisions.
        tokens: Sequences of an evaluation, a token each.
        rungs: Those of screens.
    """

    objectives = (Objective("loss"), Objective("size", known=True))
    bits = (2, 3, 4, 6, 8)

    def __init__(self, layers: int = 10, tokens: int = 16, rungs: Sequence[int] = (1, 4)) -> None:
        self.space = Space({f"layer{i}": Ordinal(*self.bits) for i in range(layers)})
        self.fidelity, self.rungs = Fidelity(tokens), rungs
        self.evaluated: list[tuple[tuple[object, ...], Fidelity]] = []

    def known(self, config: Config) -> Mapping[str, float]:
        return {"size": float(sum(config.values()))}

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        self.evaluated.append((self.space.key(config), fidelity))
        losses = 4.0 ** -np.array([config[name] for name in self.space.names], dtype=float)
        draws = [np.random.default_rng([int(fidelity.batch), s]) for s in range(fidelity.tokens)]
        scales = np.geomspace(0.1, 10, len(losses)) * np.exp([0.3 * rng.standard_normal(len(losses)) for rng in draws])
        samples = (scales @ losses).tolist()
        return Evaluation({"loss": float(np.mean(samples))}, samples={"loss": samples})

    def baselines(self) -> Mapping[str, Config]:
        return {f"uniform-{b}": dict.fromkeys(self.space.names, b) for b in self.bits}

    def costs(self) -> npt.NDArray[np.int64]:
        """The bits of each decision, [layers, widths]."""
        return np.tile(np.array(self.bits), (len(self.space), 1))

    def fingerprint(self) -> dict[str, dict[str, object]]:
        return {"identity": {"problem": "sequences", "layers": len(self.space)}, "environment": {}}


class Misbehaving(Problem):
    """Does what its configuration says, well or badly, and tells in which process and how often that was set up.

    Args:
        setup: What `setup` does: "fine", "raise" or "kill".
    """

    space = Space(
        {
            "act": Choice("fine", "raise", "nonsense", "nan", "exit", "kill", "hang", "unsendable", "print", "fork"),
            "n": Integer(0, 999),
        }
    )
    objectives = (Objective("loss"), Objective("n", known=True))

    def __init__(self, setup: Literal["fine", "raise", "kill"] = "fine") -> None:
        self._setup, self.setups = setup, 0

    def setup(self, resources: Resources) -> None:
        self.setups += 1
        self.threads = resources.threads
        if self._setup == "raise":
            raise FileNotFoundError("no such model")
        if self._setup == "kill":
            os.kill(os.getpid(), signal.SIGKILL)

    def known(self, config: Config) -> Mapping[str, float]:
        return {"n": float(config["n"])}

    def evaluate(self, config: Config, fidelity: Fidelity) -> Evaluation:
        match config["act"]:
            case "raise":
                raise ArithmeticError("nothing adds up")
            case "nonsense":
                return {"loss": 1.0}  # type: ignore[return-value]
            case "nan":
                return Evaluation({"loss": float("nan")})
            case "exit":
                sys.exit("leaving")
            case "kill":
                print("the last thing it said", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                threading.Event().wait()
            case "fork":
                os.fork()  # and both return
            case "print":
                print("x" * 1_000_000, flush=True)  # far more than a pipe holds
        about = {"pid": os.getpid(), "setups": self.setups, "threads": self.threads}
        odd = {"lock": threading.Lock()} if config["act"] == "unsendable" else {}
        return Evaluation({"loss": 1.0 / (1 + config["n"])}, attributes={**about, **odd})
