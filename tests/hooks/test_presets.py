"""Which preset of released code a configuration follows."""

from __future__ import annotations

import attrs
import pytest

from backdoorkit import Kind, MethodInfo, TrainOptions, option
from backdoorkit.hooks._loading import Method
from backdoorkit.hooks.presets import deviating_preset, resolve_config


@attrs.frozen(kw_only=True)
class Config(TrainOptions):
    rounds: int = option(3, ge=1, help="How often.")
    norm: str = option("tensor", help="Of what.")
    epochs: int = option(20, ge=0, help="Passes.")


METHOD = Method(
    MethodInfo(
        name="mine",
        summary="It.",
        implementation="nowhere:Nothing",
        config=Config,
        presets={
            "paper": {"norm": "global", "rounds": 9},
            "official": {"norm": "global", "rounds": 7, "epochs": 21},
            "longer": {"epochs": 99},
            "layered": {"norm": "layer", "rounds": 7},
            "longer-layered": {"norm": "layer", "epochs": 99},
            "alike": {"norm": "global"},
        },
    ),
    Kind.DEFENSE,
    *("mine", "backdoorkit-mine", "0.1.0"),
)


@pytest.mark.parametrize(
    ("values", "preset"),
    [
        ({}, ""),
        ({"preset": "paper"}, ""),
        ({"preset": "official"}, "official"),
        ({"preset": "official", "epochs": 2, "norm": "tensor"}, "official"),
        ({"preset": "official", "rounds": 3}, ""),
        ({"rounds": 7}, "official"),
        ({"preset": "layered", "epochs": 2}, "layered"),  # which fits official, too
        ({"preset": "longer-layered"}, "longer-layered"),  # which fits longer, too
        ({"preset": "longer"}, "longer"),
        ({"preset": "longer", "epochs": 5}, ""),
        ({"preset": "alike"}, ""),  # every value is the paper's or the default
    ],
)
def test_a_preset_is_told_from_the_options_that_only_it_sets_so(values, preset):
    assert deviating_preset(METHOD, resolve_config(METHOD, values)) == preset
