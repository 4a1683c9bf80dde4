"""Values are frozen dataclasses in every respect, however they are made."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from inspect import signature

import pytest
from llm_metering._values import dataclass, maker
from llm_metering.usage import Line, Reading, Usage, UsageRecord


@dataclass(frozen=True, slots=True)
class Ours:
    """A value."""

    name: str
    counts: tuple[int, ...] = ()
    more: Mapping[str, str] = field(default_factory=dict)
    _cache: dict[str, int] = field(default_factory=dict, init=False, repr=False, compare=False)
    _size: int = field(default=0, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("no name")
        object.__setattr__(self, "counts", tuple(self.counts))

    @property
    def total(self) -> int:
        return sum(self.counts)


@pytest.mark.parametrize("change", [lambda v: setattr(v, "name", "b"), lambda v: setattr(v, "new", 1)])
def test_a_value_cannot_be_changed(change):
    with pytest.raises((FrozenInstanceError, AttributeError)):
        change(Ours("a"))
    with pytest.raises(FrozenInstanceError):
        Usage(input=1).input = 2  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        del Usage(input=1).input  # type: ignore[misc]


def test_a_value_has_no_room_for_anything_else():
    assert not hasattr(Ours("a"), "__dict__")
    with pytest.raises(AttributeError):
        object.__setattr__(Ours("a"), "other", 1)


def test_its_class_is_its_own_when_the_checks_run_and_after():
    seen = []

    @dataclass(frozen=True, slots=True)
    class Checked:
        """A value."""

        n: int

        def __post_init__(self) -> None:
            seen.append(type(self))

    assert type(Checked(1)) is Checked
    assert seen == [Checked]


def test_arguments_are_checked_as_those_of_any_function():
    with pytest.raises(TypeError, match="name"):
        Ours()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="other"):
        Ours("a", other=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="_cache"):
        Ours("a", _cache={})  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="no name"):
        Ours("")


def test_values_that_are_equal_are_one_in_a_set():
    one, same, other = Line("a", 1), Line("a", 1), Line("a", 2)
    assert one == same
    assert one != other
    assert len({one, same, other}) == 2
    assert one != ("a", 1, (), "stripe_customer_id", "value", "sum")
    assert Ours("a") == Ours("a")
    ours = Ours("a")
    ours._cache["x"] = 1
    assert ours == Ours("a")


def test_default_factories_are_called_for_each():
    one, other = Ours("a"), Ours("b")
    assert one.more == {}
    assert one.more is not other.more
    assert one._cache is not other._cache
    assert one._size == 0


def test_dataclasses_own_functions_know_it():
    value = Ours("a", [1, 2])  # type: ignore[arg-type]
    assert dataclasses.is_dataclass(value)
    assert [f.name for f in fields(value)] == ["name", "counts", "more", "_cache", "_size"]
    assert replace(value, name="b") == Ours("b", (1, 2))
    assert asdict(Usage(input=3))["input"] == 3
    assert value.total == 3


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))])
def test_it_can_be_copied_and_pickled(again):
    for value in (Ours("a", (1,)), Usage(input=1), Reading(usage=Usage(output=2), model="m")):
        assert again(value) == value
        assert type(again(value)) is type(value)


def test_it_is_shown_with_its_fields():
    assert repr(Ours("a", (1,))) == "Ours(name='a', counts=(1,), more={})"
    assert repr(Line("a", 1)).startswith("Line(event_name='a', value=1, dimensions=()")


def test_it_is_matched_by_position():
    match Ours("a", (1, 2)):
        case Ours(name, counts):
            assert (name, counts) == ("a", (1, 2))
        case _:
            pytest.fail("not matched")


@pytest.mark.parametrize("cls", [Usage, Reading, UsageRecord, Line])
def test_its_signature_is_that_of_its_fields(cls):
    parameters = signature(cls).parameters
    assert list(parameters) == [f.name for f in fields(cls)]


def test_its_signature_is_the_same_before_and_after_its_first_value():
    @dataclass(frozen=True, slots=True)
    class Fresh:
        """A value."""

        name: str
        size: int = 3

    before = signature(Fresh)
    assert Fresh("a").size == 3
    assert signature(Fresh) == before
    assert list(before.parameters) == ["name", "size"]
    assert before.parameters["size"].default == 3


def test_the_first_value_is_refused_like_any_other():
    @dataclass(frozen=True, slots=True)
    class Fresh:
        """A value."""

        name: str

    for _ in range(2):
        with pytest.raises(TypeError, match="name"):
            Fresh()  # type: ignore[call-arg]
    assert Fresh("a") == Fresh("a")


def test_keywords_only_where_that_is_asked_for():
    @dataclass(frozen=True, slots=True, kw_only=True)
    class Named:
        """A value."""

        name: str
        size: int = 3

    assert Named(name="a") == Named(size=3, name="a")
    with pytest.raises(TypeError):
        Named("a")  # type: ignore[misc]


def test_what_is_not_frozen_or_inherits_is_refused():
    with pytest.raises(TypeError):
        dataclass(frozen=False, slots=True)
    with pytest.raises(TypeError, match="inherits"):
        dataclass(frozen=True, slots=True)(type("Child", (Ours,), {"__annotations__": {"n": int}}))


def test_a_maker_makes_what_the_class_makes():
    make = maker(Usage)
    assert make(1, None, 3) == Usage(1, None, 3)
    assert type(make(1)) is Usage
    assert hash(make(output=2)) == hash(Usage(output=2))
    with pytest.raises(FrozenInstanceError):
        make(1).input = 2  # type: ignore[misc]
    assert maker(Ours)("a").more == {}
    assert maker(Ours)("a").more is not maker(Ours)("a").more
    with pytest.raises(TypeError):
        make(1, nothing=2)  # type: ignore[call-arg]
