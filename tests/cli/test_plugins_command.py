"""``backdoorkit plugins``: listing, describing and checking."""

from __future__ import annotations

import json
import sys
import types

import attrs
import jsonschema
import pytest
from click.testing import CliRunner

from backdoorkit import MethodInfo, Need, Stage, hookimpl, option
from backdoorkit.cli import cli
from backdoorkit.hooks.registry import Entry, load_registry


@attrs.frozen(kw_only=True)
class Config:
    ratio: float = option(0.5, ge=0, le=1, symbol="ρ", help="Share that is pruned.")
    rounds: int | None = option(None, ge=1, help="How often.")


INFO = MethodInfo(
    name="pruner",
    summary="Prunes what is suspicious.",
    reference="Nobody: Nothing, Nowhere, 2024",
    implementation="no_such_module_anywhere:Pruner",
    config=Config,
    stage=Stage.POST_TRAINING,
    needs={Need.WEIGHTS, Need.CLEAN_SAMPLES},
    presets={"paper": {"ratio": 0.25}},
)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.delenv("BACKDOORKIT_PLUGINS", raising=False)
    monkeypatch.delenv("BACKDOORKIT_DISABLE_PLUGINS", raising=False)
    good = types.ModuleType("light_pruner")
    good.backdoorkit_defenses = hookimpl(lambda: [INFO], specname="backdoorkit_defenses")
    monkeypatch.setitem(sys.modules, "light_pruner", good)
    entries = [
        Entry("pruner", "light_pruner", "backdoorkit-pruner", "2.0"),
        Entry("wanet", "no_such_module_anywhere", "backdoorkit-wanet", "0.9"),
    ]
    return load_registry(entry_points=entries)


@pytest.fixture
def command(registry):
    def run(*arguments):
        return CliRunner().invoke(
            cli, ["plugins", *arguments], obj={"registry": lambda: registry}, prog_name="bk"
        )

    return run


def test_the_list_shows_methods_and_faulty_plugins(command):
    result = command("list")
    assert result.exit_code == 0
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == ["name", "kind", "stage", "plugin", "version", "state"]
    assert ["pruner", "defense", "post-training", "pruner", "2.0", "ok"] in lines
    assert ["-", "-", "-", "wanet", "0.9", "broken"] in lines
    assert "'wanet' (backdoorkit-wanet 0.9): ModuleNotFoundError" in result.stderr


def test_columns_are_aligned(command):
    lines = command("list").stdout.splitlines()
    start = lines[0].index("kind")
    assert all(line[start - 1] == " " and line[start] != " " for line in lines)


def test_the_list_can_be_limited_to_a_kind(command):
    rows = json.loads(command("list", "--kind", "defense", "--json").stdout)["methods"]
    assert [row["name"] for row in rows] == ["pruner"]
    assert command("list", "--kind", "defence").exit_code == 2


def test_the_list_as_json_holds_every_plugin_with_its_error(command):
    facts = json.loads(command("list", "--json").stdout)
    records = {record["name"]: record for record in facts["plugins"]}
    assert records["pruner"]["state"] == "ok"
    assert records["pruner"]["methods"] == ["defense:pruner"]
    assert records["wanet"]["state"] == "broken"
    assert "no_such_module_anywhere" in records["wanet"]["error"]
    (row,) = [row for row in facts["methods"] if row["plugin"] == "pruner"]
    assert row == {
        "name": "pruner",
        "kind": "defense",
        "stage": "post-training",
        "plugin": "pruner",
        "version": "2.0",
        "state": "ok",
        "summary": "Prunes what is suspicious.",
    }


def test_a_terminal_gets_the_same_rows(registry, monkeypatch, capsys):
    from backdoorkit.cli import plugins

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with plugins.list_plugins.make_context("list", []) as context:
        context.obj = {"registry": lambda: registry}
        context.invoke(plugins.list_plugins)
    out = capsys.readouterr().out
    assert "pruner" in out
    assert "broken" in out
    assert "\x1b[3" not in out


def test_a_method_is_described_in_full(command):
    result = command("show", "pruner")
    assert result.exit_code == 0
    for part in (
        "pruner (defense, post-training), plugin 'pruner' from backdoorkit-pruner 2.0",
        "Prunes what is suspicious.",
        "Reference: Nobody: Nothing, Nowhere, 2024",
        "Needs: clean-samples, weights",
        "ratio = 0.25",
        "--ratio  number in [0, 1], default 0.5, ρ in the paper",
        "Share that is pruned.",
        "--rounds  whole number in [1, inf), default none",
    ):
        assert part in result.stdout


def test_a_description_as_json_holds_what_the_text_holds(command):
    facts = json.loads(command("show", "defense:pruner", "--json").stdout)
    assert facts["needs"] == ["clean-samples", "weights"]
    assert facts["presets"] == {"paper": {"ratio": 0.25}}
    assert facts["options"][0] == {
        "name": "ratio",
        "type": "number in [0, 1]",
        "required": False,
        "default": 0.5,
        "symbol": "ρ",
        "help": "Share that is pruned.",
    }


def test_the_schema_validates_configurations(command):
    schema = json.loads(command("show", "pruner", "--schema").stdout)
    jsonschema.validate({"ratio": 0.5}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"ratio": 2}, schema)


def test_an_unknown_method_ends_with_2_and_the_nearest_name(command):
    result = command("show", "prunner")
    assert result.exit_code == 2
    assert "did you mean 'pruner'?" in result.stderr


def test_a_broken_plugin_ends_with_3_and_one_line(command):
    result = command("show", "wanet")
    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1
    assert "No module named 'no_such_module_anywhere'" in result.stderr


def test_a_failing_check_ends_with_1_and_is_named(command):
    result = command("check", "pruner")
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("failed")]
    assert any("implementation can be made" in line for line in failed)
    assert any(line.startswith("passed") for line in result.stdout.splitlines())


def test_checks_as_json_tell_the_same(command):
    result = command("check", "pruner", "--json")
    assert result.exit_code == 1
    facts = json.loads(result.stdout)
    assert facts["method"] == "defense:pruner"
    assert facts["ok"] is False
    assert {check["status"] for check in facts["checks"]} >= {"passed", "failed"}


def test_a_method_that_keeps_its_word_ends_with_0():
    result = CliRunner().invoke(cli, ["plugins", "check", "digits"])
    assert result.exit_code == 0, result.stdout
    assert "failed" not in result.stdout


def test_options_for_the_checks_are_structured_strictly(command):
    result = command("check", "pruner", "--set", "ratoi=0.5")
    assert result.exit_code == 2
    assert "--set.ratoi: unknown key; did you mean 'ratio'?" in result.stderr


def test_a_required_option_can_be_given_to_the_checks():
    command = ["plugins", "check", "callable", "--json", "--set"]
    result = CliRunner().invoke(
        cli, [*command, "target=backdoorkit.testing.tiny:TinyNetwork"], env={"PYTHONPATH": ""}
    )
    checks = {check["check"]: check["status"] for check in json.loads(result.stdout)["checks"]}
    assert checks["implementation can be made"] == "passed"


@pytest.mark.parametrize("subcommand", ["list", "show", "check"])
def test_every_command_has_help(subcommand, command):
    result = command(subcommand, "--help")
    assert result.exit_code == 0
    assert "--json" in result.stdout
