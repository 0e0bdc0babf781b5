import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moopt import Choice, Float, Integer, Ordinal, Simplex, Space
from moopt.errors import SpaceError
from moopt.space import from_description

values = st.one_of(st.integers(-99, 99), st.floats(-99, 99), st.text(max_size=3), st.booleans())
listed = st.lists(values, min_size=1, max_size=5, unique_by=lambda value: value)
variables = st.one_of(
    listed.map(lambda found: Ordinal(*found)),
    listed.map(lambda found: Choice(*found)),
    st.tuples(st.integers(-50, 50), st.integers(0, 20)).map(lambda found: Integer(found[0], found[0] + found[1])),
    st.tuples(st.floats(-50, 50), st.floats(0.1, 20)).map(lambda found: Float(found[0], found[0] + found[1])),
)
spaces = st.dictionaries(st.text(min_size=1, max_size=4), variables, min_size=1, max_size=6).map(Space)
seeds = st.integers(0, 2**32)


@given(spaces, seeds)
def test_encode_and_decode_are_inverse(space: Space, seed: int):
    config = space.sample(np.random.default_rng(seed))
    row = space.encode(config)
    assert space.decode(row) == config == space.validate(config)
    assert (space.encode(space.decode(row)) == row).all()
    assert [type(v) for v in space.decode(row).values()] == [type(v) for v in config.values()]


@given(spaces, seeds)
def test_any_row_decodes_to_a_valid_configuration(space: Space, seed: int):
    row = np.random.default_rng(seed).normal(0, 100, len(space))
    config = space.decode(row)
    assert space.validate(config) == config
    assert config == {name: variable.decode(code) for (name, variable), code in zip(space.items(), row, strict=True)}


@given(spaces, seeds)
def test_rows_are_decoded_at_once_as_one_by_one(space: Space, seed: int):
    rows = np.random.default_rng(seed).normal(0, 100, (3, len(space)))
    assert space.decode_all(rows) == [space.decode(row) for row in rows]


@given(spaces, seeds)
def test_neighbours_differ_in_one_variable(space: Space, seed: int):
    config = space.sample(np.random.default_rng(seed))
    for other in space.neighbours(config):
        assert space.validate(other) == other
        assert sum(space.key(other)[i] != space.key(config)[i] for i in range(len(space))) == 1


@given(spaces)
def test_a_description_describes_all(space: Space):
    again = from_description(space.describe())
    assert again.describe() == space.describe()
    assert list(again) == list(space)
    assert dict(again) == dict(space)


def test_samples_are_uniform_over_the_levels():
    space, rng = Space({"bits": Ordinal(2, 3, 4, 8), "n": Integer(-1, 2)}), np.random.default_rng(0)
    samples = [space.sample(rng) for _ in range(4000)]
    for name in space:
        _, counts = np.unique([sample[name] for sample in samples], return_counts=True)
        assert len(counts) == 4
        assert counts.min() > 880


def test_size_counts_configurations():
    assert Space({"a": Ordinal(1, 2, 3), "b": Choice("x", "y"), "c": Integer(0, 4)}).size == 30
    assert Space({"a": Ordinal(1, 2), "x": Float(0, 1)}).size == float("inf")


def test_ordinals_are_ordered_and_choices_are_not():
    assert Ordinal(2, 4, 8).neighbours(2) == (4,)
    assert Choice("a", "b", "c").neighbours("a") == ("b", "c")
    assert Integer(1, 3).neighbours(2) == (1, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ordinal(), "at least one"),
        (lambda: Ordinal([2, 3]), r"Ordinal\(2, 3, 4\)"),
        (lambda: Choice("a", "a"), "equal values"),
        (lambda: Ordinal(1.0, float("nan")), "finite"),
        (lambda: Integer(3, 1), "the lower first"),
        (lambda: Integer(0, 1.5), "whole numbers"),
        (lambda: Integer(0, 10**30), r"2\*\*53"),
        (lambda: Float(1, 1), "the lower first"),
        (lambda: Float(0, float("inf")), "finite"),
        (lambda: Float("0", 1), "finite"),
        (lambda: Space({}), "no variables"),
        (lambda: Space({"x": 3}), "expected a variable"),
    ],
)
def test_nonsense_is_refused(make, message: str):
    with pytest.raises(SpaceError, match=message):
        make()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"bits": 5, "x": 0.5}, "'bits' got 5, expected one of 2, 3"),
        ({"bits": 2, "x": 2.0}, "'x' got 2.0, expected a number from 0.0 to 1.0"),
        ({"bits": 2, "x": "half"}, "'x' got 'half'"),
        ({"bits": 2}, "lacks 'x'"),
        ({"bits": 2, "x": 0.5, "y": 1}, "unknown names 'y'"),
        ({"bits": [2], "x": 0.5}, "'bits' got"),
    ],
)
def test_validate_says_what_is_wrong(config: dict, message: str):
    space = Space({"bits": Ordinal(2, 3), "x": Float(0, 1)})
    with pytest.raises(SpaceError, match=message):
        space.validate(config)


def test_rows_of_another_shape_or_with_nan_are_refused():
    space = Space({"bits": Ordinal(2, 3), "x": Float(0, 1)})
    with pytest.raises(SpaceError, match=r"shape \(3,\), expected \(2,\)"):
        space.decode([0, 0, 0])
    with pytest.raises(SpaceError, match="'x' is NaN"):
        space.decode([0, float("nan")])
    with pytest.raises(SpaceError, match="'bits' got 5"):
        space.encode({"bits": 5, "x": 0.5})


parts = st.integers(2, 6)


@given(parts, seeds)
def test_weights_on_a_simplex_and_its_variables_are_inverse(k: int, seed: int):
    names = [f"m{i}" for i in range(k)]
    simplex, rng = Simplex(*names), np.random.default_rng(seed)
    given = dict(zip(names, rng.dirichlet(np.full(k, 0.5)).tolist(), strict=True))
    assert simplex.weights("w", simplex.config("w", given)) == pytest.approx(given, abs=1e-9)
    corner = {name: float(name == names[seed % k]) for name in names}
    assert simplex.weights("w", simplex.config("w", corner)) == corner


def test_uniform_draws_of_a_space_are_uniform_on_a_simplex():
    space, rng = Space({"w": Simplex("a", "b", "c"), "x": Float(0, 1)}), np.random.default_rng(0)
    assert space.names == ("w.a", "w.b", "x")
    found = np.array([list(space.simplexes["w"].weights("w", space.sample(rng)).values()) for _ in range(4000)])
    assert found.sum(axis=1) == pytest.approx(1)
    assert found.mean(axis=0) == pytest.approx(1 / 3, abs=0.02)
    assert found.var(axis=0) == pytest.approx(1 / 18, abs=0.005)  # of Dirichlet(1, 1, 1)


@pytest.mark.parametrize("wrong", [("a",), ("a", "a"), ("a", ""), ("a", 1), ()])
def test_a_simplex_needs_two_names(wrong: tuple[object, ...]):
    with pytest.raises(SpaceError, match="two names or more"):
        Simplex(*wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong", [{"a": 0.5, "b": 0.6}, {"a": -0.5, "b": 1.5}, {"a": 1.0}, {"a": float("nan"), "b": 0}]
)
def test_weights_that_are_none_are_refused(wrong: dict[str, float]):
    with pytest.raises(SpaceError, match="sum to 1"):
        Simplex("a", "b").config("w", wrong)


def test_a_variable_and_a_part_of_a_simplex_have_different_names():
    with pytest.raises(SpaceError, match=r"named 'w\.a'"):
        Space({"w.a": Float(0, 1), "w": Simplex("a", "b")})
