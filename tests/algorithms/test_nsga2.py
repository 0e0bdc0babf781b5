from moopt.algorithms import NSGA2, Algorithm
from moopt.testing.algorithms import AlgorithmSuite


class TestNSGA2(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return NSGA2(population_size=8)
