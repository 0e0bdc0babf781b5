"""How long a candidate takes on moopt's own kernels: a table of single layers whose sum predicts, and the whole model.

All figures hold for one place: moopt's runtime, one pinned thread or one GPU, batch 1, a given context. A layer is
timed over copies that do not fit into the caches, as in a model, where its codes were last read a token ago.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import moopt_kernels
from moopt.backend.options import Options, bits_of, rank_of
from moopt.backend.quiet import alone, cache_bytes, folder, pinned
from moopt.backend.weights import FUSED, Inventory, Weight
from moopt.errors import BackendError
from moopt.whole import whole_file
from moopt_kernels import Prepacked, choose_layout, quantize_weight, quantized_linear
from moopt_kernels.cpu import build
from moopt_kernels.dispatch import Layout

ROUNDS = 7
ROUND_MS = 100.0
"""How long a round may take: calls that take long are limited by arithmetic, and need not be so many."""
MOST_COPIES = 8192

Call = tuple[int, int, int]
"""One kernel call: outputs, inputs, width (16: dense)."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds: the median of several rounds, and the distance between their quartiles."""

    median: float
    spread: float


def where(device: torch.device, context: int) -> str:
    """Where latencies hold, as every figure says."""
    unit = "1 thread" if device.type == "cpu" else "1 GPU"
    return f"moopt runtime, {unit}, batch 1, context {context}"


def kernel_calls(inventory: Inventory, widths: Options) -> list[Call]:
    """The kernel calls of a token by their shapes: linears that read one input at one width are one call.

    A repair is two more.

    Args:
        inventory: The model's matrices.
        widths: By name; what is missing runs at 16 bits.
    """
    found: list[Call] = []
    taken: set[str] = set()
    linears = {w.name: w for w in inventory.linears()}
    for name, weight in linears.items():
        if name in taken:
            continue
        parent, _, leaf = name.rpartition(".")
        leaves = next((f for f in FUSED if leaf in f), (leaf,))
        mates: list[Weight] = [linears[m] for m in (f"{parent}.{other}" for other in leaves) if m in linears]
        bits = bits_of(widths.get(name, 16))
        if bits == 16 or {bits_of(widths.get(m.name, 16)) for m in mates} != {bits}:
            mates = [weight]
        taken |= {m.name for m in mates}
        for mate in mates:
            if rank := rank_of(widths.get(mate.name, 16)):
                found += [(rank, mate.shape[1], 16), (mate.shape[0], rank, 16)]
        found.append((sum(m.shape[0] for m in mates), weight.shape[1], bits))
    return found


def head_call(inventory: Inventory, widths: Options) -> Call | None:
    """The output head's kernel call, where the model has one."""
    table = inventory.table("head") or inventory.table("embedding")
    return None if table is None else (*table.shape, bits_of(widths.get(table.name, 16)))


class Table:
    """Times of single kernel calls on this machine; measured once, then kept in the cache.

    Args:
        device: Where the kernels run.
        group_size: How many inputs share a scale.
        symmetric: Whether there are no zero points.
        dtype: Of the activations.
    """

    def __init__(
        self, device: torch.device, group_size: int, symmetric: bool, dtype: torch.dtype = torch.bfloat16
    ) -> None:
        self._device, self._group_size, self._symmetric, self._dtype = device, group_size, symmetric, dtype
        self._kind = f"g{group_size}{'s' if symmetric else ''}-{str(dtype).removeprefix('torch.')}"
        self._path = folder(device) / f"{_kernels(choose_layout(device))}-torch{torch.__version__}.json"
        self._known: dict[str, list[float]] = _read(self._path)

    def call(self, call: Call, tokens: int) -> Timing:
        """A call with so many tokens."""
        return self.figure("x".join(map(str, call)) + f"-m{tokens}", lambda: self._time(call, tokens))

    def figure(self, name: str, measure: Callable[[], Timing]) -> Timing:
        """A figure by its name; measured now, with no other process at work, if the cache has none.

        Measuring must not ask for another figure that is not known.
        """
        name = f"{name}-{self._kind}"
        if name not in self._known:
            with alone(self._device):
                self._known |= _read(self._path)  # another process was first
                if name not in self._known:
                    timing = measure()
                    self._known[name] = [timing.median, timing.spread]
                    with whole_file(self._path) as temporary:
                        temporary.write_text(json.dumps(self._known, indent=1, sort_keys=True))
        return Timing(*self._known[name])

    def sum(self, calls: list[Call], tokens: int) -> float:
        """The calls' times together, in milliseconds."""
        return sum(self.call(call, tokens).median for call in calls)

    def _time(self, call: Call, tokens: int) -> Timing:
        n, k, bits = call
        x = torch.randn(tokens, k, device=self._device).to(self._dtype)
        values = torch.randn(n, k, device=self._device).to(self._dtype)
        run: Callable[[Any], Tensor]
        if bits == 16:
            first: Any = values
            run = lambda weight: torch.nn.functional.linear(x, weight)  # noqa: E731
        else:
            first = quantize_weight(values, bits, self._group_size, self._symmetric)
            run = lambda weight: quantized_linear(x, weight)  # noqa: E731

        def every() -> None:
            for weight in copies:
                run(weight)

        with pinned(self._device), torch.inference_mode():
            copies = [first]
            single = timed(every, self._device)
            room = min(2 * cache_bytes(self._device) // first.nbytes, ROUND_MS // max(single.median, 1e-3))
            copies += [_copy(first) for _ in range(int(min(MOST_COPIES, room)))]
            timing = timed(every, self._device)
        return Timing(timing.median / len(copies), timing.spread / len(copies))


def whole(model: Any, context: int) -> dict[str, Timing]:
    """A model's decode_ms (one more token after so many) and prefill_ms (so many tokens at once), measured.

    Args:
        model: A causal language model, on the device it is to be measured on.
        context: Tokens.

    Raises:
        BackendError: the model has not so many positions.
    """
    check_context(model, context)
    ids = torch.arange(context, device=model.device)[None] % model.config.vocab_size
    with pinned(model.device), torch.inference_mode():
        filled = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        past = filled

        def refill() -> None:  # not every cache can forget a token again: a sliding window has lost one for it
            nonlocal past
            past = copy.deepcopy(filled)

        def decode() -> None:
            model(input_ids=ids[:, :1], past_key_values=past, use_cache=True)

        def prefill() -> None:
            model(input_ids=ids, use_cache=True, logits_to_keep=1)

        decode_ms = timed(decode, model.device, 3 * ROUNDS, refill)
        return {"decode_ms": decode_ms, "prefill_ms": timed(prefill, model.device)}


def check_context(model: Any, context: int) -> None:
    """Refuse a context that has no position left for a token to decode.

    Raises:
        BackendError: the model has not so many positions.
    """
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and context >= positions:
        raise BackendError(
            f"Got context={context}; {type(model).__name__} has {positions} positions, and a token to decode needs one "
            "of its own: give a smaller context."
        )


def timed(
    work: Callable[[], object],
    device: torch.device,
    rounds: int | None = None,
    before: Callable[[], None] | None = None,
) -> Timing:
    """The time of a call after a warm-up, over several rounds; what is done before each of them does not count."""

    def once() -> float:
        if before is not None:
            before()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - began) * 1000

    once()
    found = [once() for _ in range(rounds or ROUNDS)]
    quartiles = statistics.quantiles(found, n=4)
    return Timing(statistics.median(found), quartiles[2] - quartiles[0])


def _copy(weight: Any) -> Any:
    if not isinstance(weight, Prepacked):
        return weight.clone()
    zeros = None if weight.zeros is None else weight.zeros.clone()
    codes, scales = weight.codes.clone(), weight.scales.clone()
    return Prepacked(codes, scales, zeros, weight.bits, weight.group_size, weight.shape, weight.layout, weight.shift)


def _kernels(layout: Layout) -> str:
    """What changes when the kernels of a layout do: the compiled library, or the sources."""
    if layout == "cpu":
        return Path(build.load()._name).stem
    digest = hashlib.sha256()
    for source in sorted(Path(str(moopt_kernels.__file__)).parent.rglob("*.py")):
        digest.update(source.read_bytes())
    return f"{layout}-{digest.hexdigest()[:16]}"


def _read(path: Path) -> dict[str, list[float]]:
    """The figures of a file, those that are ones."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text())
        return {name: [float(v) for v in value] for name, value in found.items() if _is_timing(value)}
    return {}


def _is_timing(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
