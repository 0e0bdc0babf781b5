import numpy as np

import moopt
from moopt.algorithms import Algorithm, Random, Sobol
from moopt.testing.algorithms import AlgorithmSuite, drive, evaluated
from moopt.testing.landscapes import Landscape

SQUARE = moopt.Space({"x": moopt.Float(0, 1), "y": moopt.Float(0, 1)})


class TestSobol(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return Sobol()


def points(algorithm: Algorithm, seed: int) -> np.ndarray:
    return np.array([SQUARE.encode(job.config) for job in evaluated(drive(algorithm, Landscape(SQUARE), 64, seed))])


def test_every_cell_of_an_eighth_gets_one_of_64_points():
    cells = {tuple(cell) for cell in (points(Sobol(), 0) * 8).astype(int)}
    assert len(cells) == 64
    assert len({tuple(cell) for cell in (points(Random(), 0) * 8).astype(int)}) < 50


def test_the_seed_scrambles():
    assert not np.allclose(points(Sobol(), 0), points(Sobol(), 1))


def test_levels_are_drawn_equally_often():
    space = moopt.Space({"bits": moopt.Ordinal(2, 3, 4, 8), "x": moopt.Float(0, 1)})
    jobs = evaluated(drive(Sobol(), Landscape(space), 64))
    assert np.unique([job.config["bits"] for job in jobs], return_counts=True)[1].tolist() == [16] * 4
