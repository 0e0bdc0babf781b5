import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moopt import Choice, Float, Integer, Ordinal, Space
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
