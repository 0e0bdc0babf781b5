from moopt.algorithms import Algorithm, OptunaSampler
from moopt.testing.algorithms import AlgorithmSuite


class TestTPE(AlgorithmSuite):
    trials = 16

    def algorithm(self) -> Algorithm:
        return OptunaSampler("tpe")


class TestOptunasNSGA2(AlgorithmSuite):
    def algorithm(self) -> Algorithm:
        return OptunaSampler("nsga2")
