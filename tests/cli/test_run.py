"""``backdoorkit run``: from a command line to a recipe, and from a result to output."""

from __future__ import annotations

import pytest


def refusal(result):
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    return result.stderr


# -- steps -----------------------------------------------------------------------------------------


def test_steps_and_their_options_become_a_recipe(recipe):
    values = recipe(
        "patch", "--poison-rate", "0.05", "none", "prune", "--ratio", "1", "scan", "look"
    )
    assert [table["name"] for table in values["attacks"]] == ["patch", "none"]
    assert values["attacks"][0]["poison_rate"] == 0.05
    assert [(table["name"], table["ratio"]) for table in values["defenses"]] == [("prune", 1.0)]
    assert [table["name"] for table in values["detectors"]] == ["scan"]
    assert [table["name"] for table in values["analyses"]] == ["look"]


@pytest.mark.parametrize(
    ("steps", "wanted"),
    [
        (["patch", "prune"], False),
        (["patch", "prune", "twice"], True),
        (["patch", "scan"], True),
        (["--no-controls", "patch", "prune", "scan"], False),
        (["--controls", "patch", "prune"], True),
    ],
)
def test_controls_are_there_where_methods_are_compared_or_asked_for(recipe, steps, wanted):
    steps = ["defense:twice" if step == "twice" else step for step in steps]
    assert recipe(*steps).get("controls", False) is wanted


def test_a_recipe_file_says_itself_whether_it_wants_controls(recipe, tmp_path):
    path = tmp_path / "r.toml"
    tables = '[[attacks]]\nname = "patch"\n[[detectors]]\nname = "scan"\n'
    path.write_text(tables)
    assert "controls" not in recipe("-f", str(path))
    assert recipe("-f", str(path), "--controls")["controls"] is True
    path.write_text(f"controls = true\n{tables}")
    assert recipe("-f", str(path))["controls"] is True
    assert "controls" not in recipe("-f", str(path), "--no-controls")


def test_another_data_set_or_architecture_than_the_file_s_leaves_out_what_only_that_takes(
    recipe, tmp_path
):
    path = tmp_path / "r.toml"
    path.write_text(
        '[data]\nname = "digits"\nsize = 9\ntrain_size = 70\n'
        '[model]\nname = "small-cnn"\nwidth = 5\nnormalization = "none"\n'
        '[[attacks]]\nname = "patch"\n'
    )
    same = recipe("-f", str(path), "--data", "digits", "--model", "small-cnn")
    assert (same["data"]["size"], same["model"]["width"]) == (9, 5)
    other = recipe("-f", str(path), "--data", "letters", "--model", "deep", "--set", "data.size=4")
    assert (other["data"]["name"], other["data"]["size"]) == ("letters", 4)
    assert other["data"]["train_size"] == 70
    assert other["model"]["normalization"] == "none"
    assert "width" not in other["model"]


def test_published_tables_are_looked_up_by_name(registry, recipe, call):
    assert (
        "no table of published figures is called 'x'"
        in call("run", "--dry-run", "--published", "x", "patch").stderr
    )


def test_observers_are_added_by_name(recipe):
    values = recipe("--observer", "jsonlines", "patch")
    assert [table["name"] for table in values["observers"]] == ["jsonlines"]


def test_a_step_may_come_twice_with_other_options(recipe):
    values = recipe("patch", "prune", "--ratio", "0.1", "prune", "--ratio", "0.2")
    assert [table["ratio"] for table in values["defenses"]] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        (["--levels", "0.3,0.4"], "levels", [0.3, 0.4]),
        (["--levels", "0.3", "--levels", "0.4,1"], "levels", [0.3, 0.4, 1.0]),
        (["--rule", "l2"], "rule", "l2"),
        (["--classes", "100"], "classes", 100),
        (["--no-bias"], "bias", False),
        (["--bias"], "bias", True),
        (["--note", "1, 2"], "note", "1, 2"),
        ([], "levels", [0.1, 0.2]),
    ],
)
def test_options_are_read_as_their_types_say(recipe, options, name, value):
    assert recipe("none", "prune", *options)["defenses"][0][name] == value


def test_a_preset_lies_below_what_is_given(recipe):
    table = recipe("patch", "--preset", "paper", "--target", "5")["attacks"][0]
    assert (table["poison_rate"], table["target"]) == (0.3, 5)


def test_a_name_of_two_kinds_is_qualified(call, recipe):
    values = recipe("attack:twice", "defense:twice")
    assert (values["attacks"][0]["name"], values["defenses"][0]["name"]) == ("twice", "twice")
    assert "write attack:twice or defense:twice" in refusal(call("run", "twice"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["pathc"],
            "no attack, defense, detector or analysis is called 'pathc'; did you mean 'patch'?",
        ),
        (["qqqqqq"], "known: look, patch, prune, scan, strict, twice"),
        (
            ["digits"],
            "'digits' is a dataset, and steps are attacks, defenses, detectors and analyses",
        ),
        (["patch", "--poison-rtae", "1"], "--poison-rate"),
        (["patch", "--poison-rate", "1.5"], "must be at most 1, not 1.5"),
        (["patch", "--poison-rate", "x"], "must be a number, not 'x'"),
        (["patch", "--target", "1.0"], "must be a whole number, not '1.0'"),
        (["patch", "--preset", "papre"], "paper"),
        (["prune", "--rule", "l3"], "must be one of 'l1', 'l2', not 'l3'"),
        (["prune", "--levels", "0.1,0"], "must be greater than 0, not 0"),
        (["patch", "--seed", "3"], "--seed is an option of the run, not of patch; put it before"),
        (["strict"], "defenses[0].level: is required"),
        (["patch", "patch"], "attacks[1]: is the same as attacks[0]"),
        (["--dry-run"], "nothing to do"),
        (["--data", "digit", "none"], "did you mean 'digits'?"),
        (["--epochs", "-1", "none"], "--epochs"),
        (["--set", "epochs", "none"], "--set wants PATH=VALUE"),
        (["--set", "train..epochs=1", "none"], "cannot read the path 'train..epochs'"),
        (["--set", "trian.epochs=1", "none"], "trian: unknown key; did you mean 'train'?"),
        (["--set", "train.epoch=1", "none"], "train.epoch: unknown key; did you mean 'epochs'?"),
        (["--set", "train.epochs=x", "none"], "train.epochs: must be a whole number, not 'x'"),
        (["--set", "train.epochs.x=1", "--epochs", "1", "none"], "nothing is at 'x'"),
        (["--set", "attacks[0].target=1", "none"], "attacks"),
        (["-f", "missing.toml"], "missing.toml"),
    ],
)
def test_mistakes_end_with_two_and_say_what_is_right(call, args, message):
    assert message in refusal(call("run", *args))


# -- options of the run ----------------------------------------------------------------------------


def test_options_of_the_run_change_the_recipe(recipe):
    names = ["--data", "letters", "--model", "deep", "--device", "cpu"]
    numbers = ["--epochs", "3", "--seed", "4", "--seed", "2"]
    values = recipe(*names, *numbers, "--oracle", "none")
    assert values["data"]["name"] == "letters"
    assert values["model"]["name"] == "deep"
    assert values["train"]["epochs"] == 3
    assert values["seeds"] == [4, 2]
    assert (values["device"], values["oracle"]) == ("cpu", True)


@pytest.mark.parametrize(
    ("assignment", "path", "value"),
    [
        ("data.reserve_size=100", ("data", "reserve_size"), 100),
        ("data.size = 16", ("data", "size"), 16),
        ("train.learning_rate=1e-3", ("train", "learning_rate"), 0.001),
        ("train.optimizer=adam", ("train", "optimizer"), "adam"),
        ('train.optimizer="adam"', ("train", "optimizer"), "adam"),
        ("train.milestones=[0.5]", ("train", "milestones"), [0.5]),
        ("train.nesterov=true", ("train", "nesterov"), True),
        ("model.normalization=none", ("model", "normalization"), "none"),
        ("model.weights=a=b.pt", ("model", "weights"), "a=b.pt"),
        ("seeds=[5, 6]", ("seeds",), [5, 6]),
        ("name=mine", ("name",), "mine"),
    ],
)
def test_any_key_can_be_set(recipe, tmp_path, assignment, path, value):
    found = recipe("--set", assignment, "none")
    for key in path:
        found = found[key]
    assert found == (str(tmp_path / value) if path[-1] == "weights" else value)


FILE = """
seeds = [1]
[data]
name = "letters"
[model]
name = "small-cnn"
weights = "victim.pt"
[[train]]
epochs = 1
[[train]]
epochs = 2
[[attacks]]
name = "patch"
[[defenses]]
name = "prune"
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "mine.toml"
    file.write_text(FILE)
    return file


def test_a_file_is_changed_and_extended_by_the_command_line(recipe, file, tmp_path):
    options = ["--seed", "7", "--set", "data.size=9", "--set", "attacks[0].target=3"]
    values = recipe("-f", str(file), *options, "--set", "train[1].epochs=5", "none", "scan")
    assert values["name"] == "mine"
    assert values["seeds"] == [7]
    assert values["data"]["name"] == "letters"
    assert values["data"]["size"] == 9
    assert [table["epochs"] for table in values["train"]] == [1, 5]
    assert [table["name"] for table in values["attacks"]] == ["patch", "none"]
    assert values["attacks"][0]["target"] == 3
    assert [table["name"] for table in values["detectors"]] == ["scan"]
    assert values["model"]["weights"] == str(tmp_path / "there" / "victim.pt")


def test_paths_given_beside_a_file_start_from_the_working_directory(recipe, file, tmp_path):
    args = ["--set", "model.weights=other.pt", "patch", "--picture", "p.png"]
    values = recipe("-f", str(file), *args)
    assert values["model"]["weights"] == str(tmp_path / "other.pt")
    assert values["attacks"][1]["picture"] == str(tmp_path / "p.png")


def test_an_option_for_one_of_several_tables_must_say_which(call, file):
    message = refusal(call("run", "-f", str(file), "--epochs", "3"))
    assert "train.epochs: there are 2 such tables; write which one as [0] to [1]" in message


def test_a_dry_run_is_a_recipe_that_resolves_to_itself(call, file, tmp_path):
    first = call("run", "--dry-run", "-f", str(file), "prune", "--ratio", "0.1").stdout
    resolved = tmp_path / "resolved.toml"
    resolved.write_text(first)
    assert call("run", "--dry-run", "-f", str(resolved)).stdout == first


def test_the_environment_comes_between_file_and_command_line(recipe, file):
    env = {"BACKDOORKIT_RUN_SEED": "8 9", "BACKDOORKIT_RUN_PATCH_TARGET": "4"}
    assert recipe("-f", str(file), env=env)["seeds"] == [8, 9]
    assert recipe("-f", str(file), "--seed", "2", env=env)["seeds"] == [2]
    assert recipe("patch", env=env)["attacks"][0]["target"] == 4
    assert recipe("patch", "--target", "5", env=env)["attacks"][0]["target"] == 5


# -- help ------------------------------------------------------------------------------------------


def test_help_lists_steps_by_kind(call):
    output = call("run", "--help").output
    assert output.index("Steps (attacks)") < output.index("  none") < output.index("  patch")
    assert output.index("Steps (defenses)") < output.index("  prune") < output.index("Steps (det")
    assert call("run").output.startswith("Usage:")


def test_help_of_a_step_shows_defaults_bounds_and_choices(call):
    output = " ".join(call("run", "prune", "--help").output.split())
    assert "[defense] Sum." in output
    assert "--ratio NUMBER Share. (default 0.5; in [0, 1]; r in the paper)" in output
    assert "--levels NUMBER,..." in output
    assert "--rule [l1|l2]" in output
    assert "--bias / --no-bias" in output
