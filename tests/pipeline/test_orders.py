"""What a worker is told: enough to make the same plan again."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from backdoorkit.errors import ContractError, InputError
from backdoorkit.hooks.registry import Registry, load_registry
from backdoorkit.pipeline.orders import (
    WorkOrder,
    footprint,
    require_same_versions,
    work_order,
)
from backdoorkit.pipeline.plan import Plan, StepKind, make_plan
from backdoorkit.pipeline.recipe import Recipe
from backdoorkit.pipeline.store import Store

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


@pytest.fixture(scope="module")
def installed() -> Registry:
    return load_registry()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def plan(recipe: Recipe) -> Plan:
    return make_plan(recipe, data_fingerprint=repr, file_fingerprint=repr)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_worker_makes_the_plan_of_every_recipe_again(
    installed: Registry, store: Store, path: Path
) -> None:
    try:
        recipe = Recipe.from_file(path, installed)
    except InputError as error:
        pytest.skip(f"cannot be read here: {error}".splitlines()[0])
    order = WorkOrder.from_json(work_order(recipe, installed, store).to_json())
    order.require_portable()
    require_same_versions(order, installed)
    again = Recipe.from_mapping(order.recipe, load_registry(allow=order.plugins))
    steps = plan(recipe).steps
    assert [step.key for step in plan(again).steps] == [step.key for step in steps]
    assert len(steps) > 3


@pytest.fixture
def order(installed: Registry, store: Store) -> WorkOrder:
    values = {"data": {"name": "digits"}, "attacks": [{"name": "none"}], "seeds": [0, 1]}
    return work_order(Recipe.from_mapping(values, installed), installed, store)


def test_other_versions_are_refused_by_name(installed: Registry, order: WorkOrder) -> None:
    other = attrs.evolve(order, versions={**order.versions, "backdoorkit": "9.9", "gone": "1.0"})
    message = r"backdoorkit 0\S* instead of 9\.9, gone is missing instead of 1\.0"
    with pytest.raises(ContractError, match=message):
        require_same_versions(other, installed)


def test_small_steps_take_little(installed: Registry, order: WorkOrder) -> None:
    steps = plan(Recipe.from_mapping(order.recipe, installed)).steps
    sizes = {step.kind: footprint(step, threads=4) for step in steps}
    assert sizes[StepKind.VICTIM].cpus == 4
    assert sizes[StepKind.VICTIM].gpus == 1
    for kind in (StepKind.DATA, StepKind.EVALUATE, StepKind.MEASURE):
        assert sizes[kind].cpus == 1
        assert sizes[kind].gpus < 1
        assert sizes[kind].memory < sizes[StepKind.VICTIM].memory


def test_a_model_that_is_only_imported_is_a_small_step(
    installed: Registry, order: WorkOrder, tmp_path: Path
) -> None:
    model = {"name": "small-cnn", "weights": str(tmp_path / "weights.pt")}
    recipe = Recipe.from_mapping({**order.recipe, "model": model}, installed)
    (victim, *_) = plan(recipe).of_kind(StepKind.VICTIM)
    assert footprint(victim, threads=4).cpus == 1
