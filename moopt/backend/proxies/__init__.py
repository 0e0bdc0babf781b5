"""Sensitivity proxies by name: tables [decisions, options] of what each single change of width might do to the loss.

A plug-in registers a `Proxy` under the entry point `moopt.proxies`.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from moopt.backend.evaluator import Evaluator
from moopt.backend.proxies.base import FloatArray, Proxy, Request
from moopt.backend.proxies.curvature import FISHER, FISHER_COLUMNS, FISHER_DIAGONAL, HAWQ, SLOPE
from moopt.backend.proxies.errors import OUTPUT_ERROR, WEIGHT_ERROR
from moopt.backend.proxies.measured import HIGGS, ONE_LAYER, probe_tokens, probes
from moopt.backend.proxies.shiftadd import SHIFT_ADD
from moopt.backend.proxies.trace import HAWQ_V2
from moopt.errors import ProblemError

__all__ = ["Proxy", "Request", "cost", "names", "named", "table"]

PROXIES = {
    p.name: p
    for p in (
        WEIGHT_ERROR, OUTPUT_ERROR, SHIFT_ADD, SLOPE, HAWQ, HAWQ_V2, FISHER_DIAGONAL, FISHER_COLUMNS, FISHER, HIGGS,
        ONE_LAYER,
    )
}  # fmt: skip


def names() -> list[str]:
    """The names of all proxies, plug-ins' too."""
    return list(dict.fromkeys((*PROXIES, *(point.name for point in entry_points(group="moopt.proxies")))))


def named(name: str) -> Proxy:
    """The proxy of that name.

    Raises:
        ProblemError: there is none; lists what there is.
    """
    if name in PROXIES:
        return PROXIES[name]
    plugins = {point.name: point for point in entry_points(group="moopt.proxies")}
    if name not in plugins:
        raise ProblemError(f"There is no proxy {name!r}; expected one of {', '.join(names())}.")
    loaded: Proxy = plugins[name].load()
    return loaded


def fitting(request: Request, is_language: bool, streams: bool = False) -> list[str]:
    """The names of the proxies that can answer a request."""
    return [name for name in names() if _misfit(named(name), request, is_language, streams) is None]


def check(name: str, request: Request, is_language: bool, streams: bool = False) -> None:
    """Refuse a proxy that cannot answer a request.

    Args:
        name: The proxy's.
        request: What it is asked.
        is_language: Whether the model has a vocabulary.
        streams: Whether it is known to be streamed.

    Raises:
        ProblemError: there is no such proxy, or it does not fit; says why and lists those that do.
    """
    if why := _misfit(named(name), request, is_language, streams):
        fit = ", ".join(fitting(request, is_language, streams))
        raise ProblemError(f"Got the sensitivities {name!r}, which {why}; these would do: {fit}.")


def cost(name: str, request: Request) -> int:
    """Forward tokens that a table takes, at most."""
    proxy = named(name)
    return proxy.cost(request) + probe_tokens(request, _left_out(proxy, request))


def table(name: str, request: Request, evaluator: Evaluator) -> FloatArray:
    """The table of a proxy, [decisions, options]; what it knows nothing of, an embedding, is measured instead."""
    proxy = named(name)
    if evaluator.candidate.streams:  # which is known only now if it was left to the memory that is free
        check(name, request, is_language=True, streams=True)
    evaluator.candidate.use({})
    found = proxy.table(request, evaluator)
    if rows := _left_out(proxy, request):
        found[rows] = probes(request, evaluator, rows)[rows]
    return found


def _left_out(proxy: Proxy, request: Request) -> list[int]:
    """The rows that a proxy knows nothing of."""
    if not proxy.linears_only:
        return []
    return [i for i, d in enumerate(request.decisions) if any(w.kind != "linear" for w in d.weights)]


def _misfit(proxy: Proxy, request: Request, is_language: bool, streams: bool) -> str | None:
    """Why a proxy cannot answer a request, in words; None if it can."""
    if proxy.language_only and not is_language:
        return "needs a model with a vocabulary"
    if proxy.whole and streams:
        return "needs a model that is held whole, and this one is streamed"
    if not proxy.in_loss and _left_out(proxy, request):
        return "knows linear layers only, and an embedding or head is a decision here"
    return None
