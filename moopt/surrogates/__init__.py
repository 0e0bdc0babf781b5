"""What a search believes of an objective, from what was measured. `fit` finds the surrogate that predicts best."""

from __future__ import annotations

from moopt.surrogates.base import Data, Surrogate
from moopt.surrogates.choice import fit
from moopt.surrogates.gaussian import features
from moopt.surrogates.pairing import paired

__all__ = ["Data", "Surrogate", "features", "fit", "paired"]
