"""Controls that a recipe asks for, what of them the plan holds, and what else a recipe names."""

from __future__ import annotations

import attrs
import pytest

from backdoorkit import Kind, MethodInfo, PublishedTable, hookimpl, option
from backdoorkit.errors import ConfigError
from backdoorkit.pipeline.controls import fine_tuning_like
from backdoorkit.pipeline.recipe import MethodChoice


@attrs.frozen(kw_only=True)
class Tuning:
    epochs: int = option(3, ge=0, help="Passes.")
    crop_padding: int = option(0, ge=0, help="Pixels.")


@pytest.fixture
def with_tuning(registry, toy):
    """A defense ``ft``, which is the toy defense under that name, with other options."""

    class FineTuning(toy.ToyDefense):
        def __init__(self, config):
            super().__init__(toy.ToyDefenseOptions())

    class Plugin:
        @staticmethod
        @hookimpl
        def backdoorkit_defenses():
            for name in ("ft", "longer"):
                yield MethodInfo(
                    name=name,
                    summary="It.",
                    implementation="toy_methods:FineTuning",
                    config=Tuning,
                    needs=toy.backdoorkit_defenses()[0].needs,
                )

    toy.FineTuning = FineTuning
    registry.register(Plugin, name="tuning")


def rows(result):
    return [(row.attack, row.defense) for row in result.table.rows]


def test_the_clean_twin_and_fine_tuning_are_added(with_tuning, recipe, run):
    wanted = recipe(controls=True, defenses=[{"name": "toy-defense"}])
    result = run(wanted)
    assert rows(result) == [
        ("toy-attack", "no defense"),
        ("toy-attack", "toy-defense"),
        ("toy-attack", "ft"),
        ("none", "no defense"),
    ]
    assert not any("control" in line for line in result.table.to_text().splitlines())


def test_detectors_see_the_clean_twin_too(recipe, run):
    result = run(recipe(controls=True, detectors=[{"name": "toy-detector"}]))
    assert [d.attack for d in result.table.detections] == ["toy-attack", "none"]


def test_a_control_that_is_there_is_not_added_again(with_tuning, recipe, run):
    attacks = [{"name": "none"}, {"name": "toy-attack"}]
    wanted = recipe(controls=True, attacks=attacks, defenses=[{"name": "ft", "epochs": 1}])
    assert [choice.config.epochs for choice in wanted.defenses] == [1]
    assert rows(run(wanted)) == [
        (attack, defense) for attack in ("none", "toy-attack") for defense in ("no defense", "ft")
    ]


def test_without_asking_there_are_none_and_the_table_says_so(recipe, run):
    result = run(recipe(defenses=[{"name": "toy-defense"}]))
    assert len(result.table.rows) == 2
    assert result.table.to_text().count("control missing") == 2


def test_a_recipe_with_controls_is_the_same_when_read_again(with_tuning, recipe, registry):
    wanted = recipe(controls=True, defenses=[{"name": "longer", "epochs": 9}])
    again = type(wanted).from_mapping(wanted.to_mapping(), registry)
    assert again == wanted
    assert [choice.name for choice in again.defenses] == ["longer", "ft"]


def test_fine_tuning_gets_as_many_epochs_as_the_longest_with_its_augmentation(
    with_tuning, registry
):
    installed = registry.methods(Kind.DEFENSE)
    some = [
        MethodChoice(name="a", config=Tuning(epochs=5, crop_padding=4)),
        MethodChoice(name="b", config=Tuning(epochs=2, crop_padding=1)),
        MethodChoice(name="c", config=object()),
    ]
    assert fine_tuning_like(some, installed) == {"name": "ft", "epochs": 5, "crop_padding": 4}
    assert fine_tuning_like(some[2:], installed) == {"name": "ft"}
    assert fine_tuning_like([], installed) is None
    assert fine_tuning_like(some, [m for m in installed if m.name != "ft"]) is None


# -- published figures of a recipe -----------------------------------------------------------------


@pytest.fixture
def with_figures(registry, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "toy_figures").mkdir()
    (tmp_path / "toy_figures" / "__init__.py").touch()
    (tmp_path / "toy_figures" / "t.toml").write_text(
        'source = "Toys (2020)"\nsetting = "sand"\ncolumns = ["ACC"]\n'
        "[figures.toy-attack]\nnone = [12.5]\n"
    )

    class Plugin:
        @staticmethod
        @hookimpl
        def backdoorkit_published_tables():
            yield PublishedTable(name="toy-table1", resource="toy_figures:t.toml")
            yield PublishedTable(name="toy-table2", resource="toy_figures:missing.toml")

    registry.register(Plugin, name="papers")


def test_the_report_of_a_run_shows_the_figures_that_its_recipe_names(with_figures, recipe, run):
    result = run(recipe(published=["toy-table1"]))
    html = result.report.read_text()
    assert "Toys (2020). Measured there: sand." in html
    assert '<span class="beside">12.50 <b>' in html


def test_figures_change_neither_keys_nor_the_run_s_folder(with_figures, recipe, run):
    plain, compared = run(recipe()), run(recipe(published=["toy-table1"]))
    assert plain.directory == compared.directory
    assert all(result.reused for result in compared.run.results.values())


@pytest.mark.parametrize(
    ("name", "fault"),
    [("toy-tabel1", "did you mean 'toy-table1'"), ("toy-table2", "the file is missing")],
)
def test_figures_that_cannot_be_shown_are_refused_before_the_run(with_figures, recipe, name, fault):
    with pytest.raises(ConfigError, match=f"published: .*{fault}"):
        recipe(published=[name])
