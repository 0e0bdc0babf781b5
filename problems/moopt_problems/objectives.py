"""What a bit allocation may be measured by: moopt's own objectives, by name."""

from __future__ import annotations

from collections.abc import Sequence

from moopt.backend import latency
from moopt.backend.candidate import choose_device
from moopt.backend.metrics import Metric
from moopt.errors import ProblemError
from moopt.problem import Objective

MEASURED = {
    "kl": Objective("kl", unit="nats/token", scale="log", least=0.01),
    "perplexity": Objective("perplexity"),
    "top1_agreement": Objective("top1_agreement", "max"),
    "cosine_distance": Objective("cosine_distance"),
    "relative_error": Objective("relative_error"),
}
KNOWN = {
    "size_mb": Objective("size_mb", unit="MB", known=True),
    "bits": Objective("bits", unit="bits/weight", known=True),
}
LANGUAGE = ("kl", "perplexity", "top1_agreement")
TIMED = ("decode_ms", "prefill_ms")


def chosen(
    names: Sequence[str] | None, model: str, is_language: bool, context: int, metrics: Sequence[Metric],
    untimed: str,
) -> tuple[Objective, ...]:  # fmt: skip
    """The objectives of those names, and the user's own.

    Args:
        names: None: the loss that fits the model, and the size.
        model: The model's name, for messages.
        is_language: Whether it has a vocabulary.
        context: Tokens of a sequence.
        metrics: The user's, that every candidate is measured by or only the front.
        untimed: What candidates have that cannot be timed, if anything.

    Raises:
        ProblemError: there is no such objective, candidates cannot be timed, or a metric has the name of one.
    """
    fitting = LANGUAGE if is_language else ("cosine_distance", "relative_error")
    known = {**{n: MEASURED[n] for n in fitting}, **KNOWN}
    if is_language:
        place = latency.where(choose_device("auto"), context)
        known |= {name: Objective(name, unit=f"ms; {place}") for name in TIMED}
    names = (fitting[0], "size_mb") if names is None else names
    if not isinstance(names, (list, tuple)):
        raise ProblemError(f"Got objectives={names!r}; expected some of {', '.join(known)} in a list.")
    if unknown := [n for n in names if n not in known]:
        raise ProblemError(
            f"Got the objective {unknown[0]!r}; {model} is measured by {', '.join(known)}. "
            "Objectives of your own go into metrics=."
        )
    if untimed and any(n in TIMED for n in names):
        raise ProblemError(f"Got decode_ms or prefill_ms, and {untimed}; leave one of them out.")
    if taken := [m.name for m in metrics if m.name in {*MEASURED, *KNOWN, *TIMED}]:
        raise ProblemError(f"A metric of your own is named {taken[0]!r}, which is moopt's; give it another name.")
    own = tuple(Objective(m.name, m.direction, m.unit) for m in metrics if m.when == "every")
    return (*(known[n] for n in names), *own)
