"""``backdoorkit run``: where steps run, from the command line and from a file."""

from __future__ import annotations

import tomllib

import attrs
import pytest
from click.testing import CliRunner

from backdoorkit import PoisonOptions, option
from backdoorkit.cli import cli
from backdoorkit.hooks.registry import Registry
from backdoorkit.pipeline import catalog
from backdoorkit.pipeline.recipe import STANDARD_METRICS
from backdoorkit.testing import light_method, light_plugin


@attrs.frozen(kw_only=True)
class CloudOptions:
    address: str | None = option(None, help="Address.")
    share: float = option(1.0, gt=0, help="Share.")


def light_methods():
    return light_plugin(
        datasets=[light_method("digits")],
        models=[light_method("small-cnn")],
        attacks=[light_method("patch", PoisonOptions)],
        metrics=[light_method(name) for name in STANDARD_METRICS],
        executors=[light_method("cloud", CloudOptions)],
    )


@pytest.fixture
def call(monkeypatch, tmp_path):
    registry = Registry()
    registry.register(catalog)
    registry.register(light_methods(), name="light")
    monkeypatch.chdir(tmp_path)

    def call(*args):
        obj = {"registry": lambda: registry}
        return CliRunner().invoke(cli, ["run", "--dry-run", *args, "patch"], obj=obj)

    return call


@pytest.fixture
def chosen(call, tmp_path):
    """Jobs and executor of the resolved recipe; ``file`` is what a recipe file says of them."""

    def chosen(*args, file=None):
        if file is not None:
            (tmp_path / "recipe.toml").write_text(file)
            args = ("-f", "recipe.toml", *args)
        result = call(*args)
        assert result.exit_code == 0, result.output
        values = tomllib.loads(result.stdout)
        return values.get("jobs"), values["executor"]

    return chosen


PROCESSES = {"name": "processes", "retries": 2}


def test_one_job_in_this_process_is_the_default(chosen):
    assert chosen() == (None, "in-process")
    assert chosen("--jobs", "1") == (1, "in-process")


def test_several_jobs_are_processes(chosen):
    assert chosen("--jobs", "3") == (3, PROCESSES)
    assert chosen("-j", "3") == (3, PROCESSES)
    assert chosen(file="jobs = 2") == (2, PROCESSES)
    assert chosen("--jobs", "3", file='jobs = 2\nexecutor = "in-process"') == (3, PROCESSES)
    assert chosen("--jobs", "2", "--set", "executor.retries=5") == (
        2,
        {"name": "processes", "retries": 5},
    )


def test_options_of_an_executor_come_from_file_and_command_line(chosen):
    cloud = {"name": "cloud", "share": 1.0}
    assert chosen("--executor", "cloud") == (None, cloud)
    assert chosen("--executor", "cloud", "--jobs", "9") == (9, cloud)
    here = {**cloud, "address": "here:1"}
    assert chosen("--executor", "cloud", "--address", "here:1")[1] == here
    assert chosen("--address", "here:1", file='executor = "cloud"')[1] == here
    table = '[executor]\nname = "cloud"\naddress = "there:2"\nshare = 0.5'
    there = {"name": "cloud", "address": "there:2", "share": 0.5}
    assert chosen(file=table)[1] == there
    assert chosen("--executor", "cloud", file=table)[1] == there
    assert chosen("--address", "here:1", file=table)[1] == {**there, "address": "here:1"}
    assert chosen("--set", "executor.share=0.25", file=table)[1] == {**there, "share": 0.25}
    assert chosen("--executor", "in-process", file=table)[1] == "in-process"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--jobs", "0"], "0 is not in the range"),
        (["--executor", "clod"], "did you mean 'cloud'"),
        (["--jobs", "2", "--executor", "in-process"], "one step at a time, and jobs is 2"),
        (["--address", "here:1"], "executor.address: unknown key"),
        (["--jobs", "2", "--address", "here:1"], "executor.address: unknown key; known: retries"),
        (["--executor", "cloud", "--set", "executor.share=0"], "must be greater than 0"),
    ],
)
def test_what_does_not_fit_is_refused(call, args, message):
    result = call(*args)
    assert result.exit_code == 2
    assert message in result.stderr
