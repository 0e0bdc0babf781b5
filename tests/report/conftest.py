"""A study as a search leaves it, with markup wherever names can be."""

from __future__ import annotations

import pytest

import moopt

HOSTILE = "</script><script>alert(1)</script>"


class Layers(moopt.Problem):
    """Four layers of 2, 4 or 8 bits; 8 bits before 2 break the evaluation."""

    space = moopt.Space({f"layer{i}": moopt.Ordinal(2, 4, 8) for i in range(4)})
    objectives = (moopt.Objective("kl", unit="nats/token"), moopt.Objective("size_mb", unit="MB", known=True))
    fidelity = moopt.Fidelity(256)
    measurements = {"held-out": moopt.Fidelity(512)}  # noqa: RUF012

    def known(self, config: moopt.Config) -> dict[str, float]:
        return {"size_mb": float(sum(config.values()))}

    def evaluate(self, config: moopt.Config, fidelity: moopt.Fidelity) -> moopt.Evaluation:
        bits = list(config.values())
        if bits[:2] == [8, 2]:
            raise ValueError("</script><script>alert('two <b>odd</b> layers')</script>")
        return moopt.Evaluation({"kl": sum((i + 1) ** 3 / b**2 for i, b in enumerate(bits)), "perplexity": 20.0})

    def baselines(self) -> dict[str, moopt.Config]:
        return {f"uniform-{b}": dict.fromkeys(self.space.names, b) for b in (2, 4, 8)}


@pytest.fixture(scope="session")
def history() -> moopt.History:
    """A study that was run, with markup in its name and in its failures; to be read and not written."""
    study = moopt.Study(HOSTILE, Layers(), "random", seed=1).run(trials=60)
    assert any(trial.failure for trial in study.history.trials)
    return study.history
