"""Additive surrogates: they find what each option adds, and know how sure they are."""

import numpy as np
import pytest

import moopt
from moopt import pareto
from moopt.acquisition import Known
from moopt.space import Choice, Float, Ordinal, Space
from moopt.surrogates import Data, fit
from moopt.surrogates.options import Options
from moopt.surrogates.sums import LinearAdditive, LogAdditive

SPACE = Space({**{f"layer{i}": Ordinal(2, 3, 4, 8) for i in range(6)}, "kind": Choice("a", "b")})


def sampled(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([SPACE.encode(SPACE.sample(rng)) for _ in range(n)])


def losses(codes: np.ndarray) -> np.ndarray:
    """A sum of positive parts that fall fast over the levels; the choice doubles nothing, it adds."""
    scales = np.array([0.1, 3.0, 0.5, 1.0, 10.0, 0.05])
    return (scales * 4.0 ** -codes[:, :6]).sum(axis=1) + 0.3 * codes[:, 6]


@pytest.mark.parametrize("kind", [LogAdditive, LinearAdditive])
def test_it_predicts_what_it_has_not_seen(kind: type) -> None:
    codes, new = sampled(60), sampled(40, 1)
    surrogate = kind(Data(codes, losses(codes)), Options(SPACE))
    errors = np.abs(surrogate.mean(new) - losses(new))
    assert np.median(errors / losses(new)) < 0.05
    covariance = surrogate.posterior(new)[1]
    assert (np.diag(covariance) > -1e-9).all()


def test_its_errors_are_as_large_as_it_says() -> None:
    def bent(codes: np.ndarray) -> np.ndarray:
        return losses(codes) * np.exp(0.3 * np.sin(codes.sum(axis=1)))

    codes, new = sampled(50), sampled(200, 1)
    mean, covariance = LogAdditive(Data(codes, bent(codes)), Options(SPACE)).posterior(new)
    standard = (np.log(bent(new)) - mean) / np.sqrt(np.diag(covariance))
    assert 0.5 < np.sqrt(np.mean(standard**2)) < 2.0


def test_a_prior_table_stands_in_for_data() -> None:
    codes, new = sampled(4), sampled(40, 1)
    options = Options(SPACE)
    table = np.full((7, 4), np.inf)
    for i, b in zip(options.owner, options.level, strict=True):
        row = np.full(7, 3.0)
        row[6] = 0.0
        base = losses(row[None])[0] - (4.0**-3 * [0.1, 3.0, 0.5, 1.0, 10.0, 0.05, 0][i])
        row[i] = b
        table[i, b] = max(losses(row[None])[0] - base, 1e-9)
    known = LogAdditive(Data(codes, losses(codes)), options, table)
    blind = LogAdditive(Data(codes, losses(codes)), options)

    def error(surrogate: LogAdditive) -> float:
        return float(np.abs(np.log(surrogate.mean(new) / losses(new))).mean())

    assert error(known) < 0.2 * error(blind)


def test_drawn_tables_spread_around_the_truth() -> None:
    codes = sampled(60)
    surrogate = LogAdditive(Data(codes, losses(codes)), Options(SPACE))
    tables = surrogate.tables(16, np.random.default_rng(0))
    assert tables.shape == (16, 7, 4)
    assert np.isinf(tables[:, 6, 2:]).all()
    steps = tables[:, 4, 0] - tables[:, 4, 1]
    assert np.median(steps) == pytest.approx(7.5, rel=0.1)


def test_measured_errors_are_believed() -> None:
    codes = sampled(40)
    rng = np.random.default_rng(0)
    noisy = losses(codes) * (1 + 0.2 * rng.standard_normal(40))
    surrogate = LogAdditive(Data(codes, noisy, (0.2 * losses(codes)) ** 2), Options(SPACE))
    kept = np.abs(surrogate.mean(codes) / losses(codes) - 1).mean()
    assert kept < 0.75 * np.abs(noisy / losses(codes) - 1).mean()


def test_more_data_needs_no_new_fit() -> None:
    codes = sampled(50)
    data = Data(codes, losses(codes))
    fewer = LogAdditive(Data(codes[:30], losses(codes[:30])), Options(SPACE))
    more, new = fewer.conditioned(data), sampled(30, 1)
    assert more.posterior(new)[1].trace() < fewer.posterior(new)[1].trace()
    np.testing.assert_allclose(more.mean(codes), losses(codes), rtol=0.05)


def test_what_adds_up_is_recognised() -> None:
    codes = sampled(40)
    assert isinstance(fit(Data(codes, losses(codes)), SPACE), LogAdditive)
    assert isinstance(fit(Data(codes, -codes.sum(axis=1)), SPACE), LinearAdditive)


class Mixed(moopt.Problem):
    """Bits of forty layers beside three coefficients that depend on one another; how large is known."""

    space = Space({**{f"w{i}": Float(0.0, 1.0) for i in range(3)}, **{f"b{i}": Ordinal(2, 3, 4, 8) for i in range(40)}})
    objectives = (moopt.Objective("loss"), moopt.Objective("bits", known=True))
    scales = np.exp(1.2 * np.random.default_rng(0).standard_normal(40)) / 5

    def evaluate(self, config, fidelity):
        away = np.array([config[f"w{i}"] for i in range(3)]) - [0.3, 0.5, 0.2]
        bits = np.array([config[f"b{i}"] for i in range(40)])
        return moopt.Evaluation({"loss": 2 + 2 * away @ away + away[0] * away[1] + self.scales @ 4.0**-bits})

    def known(self, config):
        return {"bits": float(sum(config[f"b{i}"] for i in range(40)))}

    def baselines(self):
        rest = {f"w{i}": 1 / 3 for i in range(3)}
        return {f"uniform-{b}": {**rest, **{f"b{i}": b for i in range(40)}} for b in (8, 4, 3, 2)}


def drawn(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    problem, rng = Mixed(), np.random.default_rng(seed)
    configs = [problem.space.sample(rng) for _ in range(n)]
    codes = np.array([problem.space.encode(config) for config in configs])
    return codes, np.array([problem.evaluate(config, problem.fidelity).values["loss"] for config in configs])


def test_numbers_beside_decisions_add_a_share_of_their_own() -> None:
    codes, values = drawn(80, 0)
    new, truth = drawn(60, 1)
    surrogate = fit(Data(codes, values), Mixed.space)
    assert np.corrcoef(surrogate.mean(new), truth)[0, 1] > 0.9
    assert surrogate.tables(4, np.random.default_rng(0)).shape == (4, 40, 4)


def test_what_is_known_has_tables_beside_numbers_that_do_not_count() -> None:
    known = Known(Mixed())
    assert known.tables is not None
    assert known.tables.shape == (1, 40, 4)
    codes, _ = drawn(5, 2)
    wanted = [Mixed().known(Mixed.space.decode(row))["bits"] for row in codes]
    np.testing.assert_allclose(known.values(codes)["bits"], wanted)


def test_numbers_that_count_for_what_is_known_leave_no_tables() -> None:
    class Counting(Mixed):
        def known(self, config):
            return {"bits": super().known(config)["bits"] * (1 + config["w0"])}

    known = Known(Counting())
    assert known.tables is None
    codes, _ = drawn(5, 2)
    wanted = [Counting().known(Mixed.space.decode(row))["bits"] for row in codes]
    np.testing.assert_allclose(known.values(codes)["bits"], wanted)


def test_a_search_settles_numbers_and_decisions_together() -> None:
    study = moopt.Study("mixed", Mixed(), "qnehvi").run(trials=45)
    values = study.history.values(study.history.feasible())
    assert pareto.hypervolume(values, np.array([2.6, 330.0])) > 118  # with one process of everything 105 to 113


def test_a_table_helps_where_numbers_bring_a_loss_without_damage() -> None:
    """Such as the loss of a merge on a text, settled without damage first, of which a table of damages says nothing."""
    space = Space({"a": Float(0, 1), "b": Float(0, 1), **{f"layer{i}": Ordinal(2, 3, 4) for i in range(12)}})
    table = np.geomspace(0.003, 0.3, 12)[:, None] * np.array([1.0, 0.3, 0.0])

    def drawn(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        return np.array([space.encode(space.sample(rng)) for _ in range(n)])

    def truth(codes: np.ndarray) -> np.ndarray:
        damages = table[np.arange(12), codes[:, 2:].astype(int)].sum(axis=1)
        return 2.5 + 0.2 * ((codes[:, 0] - 0.6) ** 2 + codes[:, 1] ** 2) + 0.8 * damages + 0.2 * damages**2

    codes, new = drawn(24, 0), drawn(80, 1)
    codes[:16, 2:] = 2
    codes[16:, :2] = 0.6, 0.0
    errors = fit(Data(codes, truth(codes)), space, table).mean(new) - truth(new)
    assert np.sqrt(np.mean(errors**2)) < 0.2 * truth(new).std()
