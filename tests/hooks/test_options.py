"""One class per method is the source of structuring, schema and help."""

from __future__ import annotations

import enum
import math
from pathlib import Path
from typing import Literal

import attrs
import jsonschema
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from backdoorkit import PoisonOptions, TrainOptions, option
from backdoorkit.errors import ConfigError
from backdoorkit.hooks.options import json_schema, option_specs, structure, unstructure


class Colour(enum.StrEnum):
    RED = "red"
    GREEN = "green"


class Size(enum.IntEnum):
    SMALL = 1


@attrs.frozen(kw_only=True)
class Inner:
    depth: int = option(2, ge=1, help="Layers.")


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, ge=0, lt=1, symbol="ρ", help="A share.")
    rounds: int = option(3, gt=0, le=10, help="How often.")
    fast: bool = option(False, help="Whether to hurry.")
    mode: Literal["sgd", "adam"] = option("sgd", help="How.")
    colour: Colour = option(Colour.RED, help="Which.")
    sizes: tuple[Size, ...] = option((Size.SMALL,), help="How big.")
    levels: tuple[float, ...] = option((0.25, 0.5), ge=0, le=1, help="Where.")
    limit: int | None = option(None, ge=1, help="At most.")
    folder: Path | None = option(None, help="Where from.")
    power: int = option(2, choices=(1, 2), help="Norm.")
    inner: Inner = option(Inner(), help="Below.")


@attrs.frozen(kw_only=True)
class Required:
    name: str = option(help="Which.")


def faults(values, config=Config, path=""):
    with pytest.raises(ConfigError) as caught:
        structure(config, values, path)
    return [str(issue) for issue in caught.value.issues]


def test_values_become_their_declared_types():
    made = structure(
        Config,
        {
            "ratio": 0,
            "colour": "green",
            "levels": [0, 1],
            "limit": 4,
            "folder": "a/b",
            "inner": {"depth": 5},
        },
    )
    assert made == Config(
        ratio=0.0,
        colour=Colour.GREEN,
        levels=(0.0, 1.0),
        limit=4,
        folder=Path("a/b"),
        inner=Inner(depth=5),
    )
    assert isinstance(made.ratio, float)
    assert isinstance(made.levels[0], float)


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"ratio": 1.0}, "ratio: must be less than 1, not 1.0"),
        ({"ratio": -0.1}, "ratio: must be at least 0, not -0.1"),
        ({"ratio": math.nan}, "ratio: must be at least 0, not nan"),
        ({"ratio": "0.5"}, "ratio: must be a number, not '0.5'"),
        ({"ratio": True}, "ratio: must be a number, not True"),
        ({"ratio": None}, "ratio: must be a number, not None"),
        ({"rounds": 0}, "rounds: must be greater than 0, not 0"),
        ({"rounds": 11}, "rounds: must be at most 10, not 11"),
        ({"rounds": 3.0}, "rounds: must be a whole number, not 3.0"),
        ({"rounds": True}, "rounds: must be a whole number, not True"),
        ({"fast": 1}, "fast: must be true or false, not 1"),
        ({"fast": "no"}, "fast: must be true or false, not 'no'"),
        (
            {"mode": "addam"},
            "mode: must be one of 'sgd', 'adam', not 'addam'; did you mean 'adam'?",
        ),
        ({"colour": "blue"}, "colour: must be one of 'red', 'green', not 'blue'"),
        ({"colour": ["red"]}, "colour: must be one of 'red', 'green', not ['red']"),
        ({"sizes": [1, 2]}, "sizes[1]: must be one of 1, not 2"),
        ({"levels": [0.5, 2]}, "levels: must be at most 1, not 2.0"),
        ({"levels": [0.5, "x"]}, "levels[1]: must be a number, not 'x'"),
        ({"levels": "0.5"}, "levels: must be a list, not '0.5'"),
        ({"levels": 0.5}, "levels: must be a list, not 0.5"),
        ({"limit": 0}, "limit: must be at least 1, not 0"),
        ({"power": 3}, "power: must be one of 1, 2, not 3"),
        ({"folder": 3}, "folder: must be a path, not 3"),
        ({"inner": 3}, "inner: must be a table, not 3"),
        ({"inner": {"depth": 0}}, "inner.depth: must be at least 1, not 0"),
        ({"ratoi": 1}, "ratoi: unknown key; did you mean 'ratio'?"),
        ({"inner": {"x": 0}}, "inner.x: unknown key; known: depth"),
    ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(values, fault):
    assert faults(values) == [fault]


def test_all_faults_are_reported_at_once_below_their_path():
    found = faults({"ratio": 7, "fast": "no", "levels": [3], "x": 1}, path="defenses[1]")
    assert {fault.split(":")[0] for fault in found} == {
        "defenses[1].ratio",
        "defenses[1].fast",
        "defenses[1].levels",
        "defenses[1].x",
    }


def test_a_required_option_must_be_given():
    assert faults({}, Required) == ["name: is required"]
    assert structure(Required, {"name": "x"}) == Required(name="x")


def test_something_else_than_a_table_is_refused():
    assert faults(["ratio"], path="train") == ["train: must be a table, not ['ratio']"]


def test_a_configuration_made_in_python_is_held_to_its_bounds():
    with pytest.raises(ValueError, match="ratio must be less than 1"):
        Config(ratio=2)


def test_a_cross_field_check_is_reported():
    @attrs.frozen(kw_only=True)
    class Ordered:
        low: float = option(0.0, help="Low.")
        high: float = option(1.0, help="High.")

        def __attrs_post_init__(self):
            if self.low > self.high:
                raise ValueError("low must not exceed high")

    # The class is local, so its annotations are resolved by hand.
    Ordered.__annotations__ |= {"low": float, "high": float}
    assert faults({"low": 2}, Ordered, "attacks[0]") == ["attacks[0]: low must not exceed high"]


@pytest.mark.parametrize("config", [Config(), Config(limit=2, folder=Path("x")), TrainOptions()])
def test_a_configuration_survives_the_way_through_toml(config):
    import tomllib

    text = tomli_w.dumps(unstructure(config))
    assert structure(type(config), tomllib.loads(text)) == config


@given(
    st.builds(
        PoisonOptions,
        poison_rate=st.floats(0, 1),
        target=st.integers(0, 10**6),
    )
)
def test_any_valid_configuration_survives_being_unstructured(config):
    assert structure(PoisonOptions, unstructure(config)) == config


def test_the_schema_is_valid_and_accepts_the_defaults():
    schema = json_schema(Config)
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(unstructure(Config()), schema)


@pytest.mark.parametrize(
    "values",
    [
        {"ratio": 1.0},
        {"rounds": 0},
        {"mode": "x"},
        {"colour": "blue"},
        {"levels": [2]},
        {"fast": 1},
        {"inner": {"depth": 0}},
        {"unknown": 1},
    ],
)
def test_the_schema_refuses_what_structuring_refuses(values):
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values, json_schema(Config))
    assert faults(values)


def test_the_schema_names_required_options():
    assert json_schema(Required)["required"] == ["name"]


def test_options_know_how_to_describe_themselves():
    specs = {spec.name: spec for spec in option_specs(Config)}
    assert specs["ratio"].flag == "--ratio"
    assert specs["ratio"].type_name == "number in [0, 1)"
    assert specs["rounds"].type_name == "whole number in (0, 10]"
    assert specs["limit"].type_name == "whole number in [1, inf)"
    assert specs["levels"].type_name == "list of number in [0, 1]"
    assert specs["mode"].type_name == "one of sgd, adam"
    assert specs["colour"].allowed == ("red", "green")
    assert specs["inner"].type_name == "table"
    assert specs["folder"].type_name == "path"
    texts = {name: spec.default_text for name, spec in specs.items()}
    assert texts["fast"] == "false"
    assert texts["colour"] == "red"
    assert texts["limit"] == "none"
    (required,) = option_specs(Required)
    assert required.required
    assert required.default_text == "required"


def test_options_are_made_of_what_the_class_says_and_nothing_is_shared():
    assert [spec.name for spec in option_specs(PoisonOptions)] == [
        "poison_rate",
        "rate_basis",
        "label_map",
        "target",
        "index_policy",
        "cover_ratio",
        "source_classes",
    ]
    assert option_specs(PoisonOptions)[0].symbol == "ρ"
