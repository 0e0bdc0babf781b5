"""What a model-based search evaluates next: beliefs about candidates, the improvement they promise, and proposals."""

from __future__ import annotations

from moopt.acquisition.beliefs import Beliefs
from moopt.acquisition.climbing import climbed
from moopt.acquisition.curve import CurveImprovement
from moopt.acquisition.improvement import Improvement, expected_improvement
from moopt.acquisition.known import Known
from moopt.acquisition.matches import Matches
from moopt.acquisition.proposals import Proposals

__all__ = [
    "Beliefs",
    "climbed",
    "CurveImprovement",
    "Improvement",
    "Known",
    "Matches",
    "Proposals",
    "expected_improvement",
]
