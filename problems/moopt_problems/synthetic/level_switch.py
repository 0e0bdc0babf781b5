"""The move of a bit allocation: what one decision gains in width another one loses."""

from __future__ import annotations

import numpy as np

import moopt


def level_switch(space: moopt.Space, config: moopt.Config, rng: np.random.Generator) -> moopt.Config:
    """A configuration with one decision one level up and another one down, where there is room (EvoPress)."""
    codes = space.encode(config)
    up, down = np.flatnonzero(codes < space.upper), np.flatnonzero(codes > space.lower)
    for candidates, step in ((up, 1.0), (down, -1.0)):
        if len(candidates):
            codes[rng.choice(candidates)] += step
    return space.decode(codes)
