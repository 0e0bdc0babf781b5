from moopt.algorithms import Algorithm, Random
from moopt.testing.algorithms import AlgorithmSuite


class TestRandom(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return Random()
