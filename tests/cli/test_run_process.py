"""The command in processes of its own: what is imported, signals, pipes, completion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PLUGIN = """
import attrs
from backdoorkit import MethodInfo, PoisonOptions, hookimpl

@hookimpl
def backdoorkit_attacks():
    yield MethodInfo(
        name="stamp", summary="S.", implementation="stamp_plugin:None_", config=PoisonOptions
    )

@attrs.frozen(kw_only=True)
class NoOptions:
    pass

@hookimpl
def backdoorkit_metrics():
    yield MethodInfo(
        name="slow-metric", summary="S.", implementation="stamp_plugin:None_", config=NoOptions
    )
"""

#: Stands where the heavy runner would be imported from.
SLOW_RUNNER = """
import sys, time, types
module = types.ModuleType("backdoorkit.pipeline.runner")
def run_recipe(*_, **__):
    print("running", file=sys.stderr, flush=True)
    time.sleep(60)
module.run_recipe = run_recipe
sys.modules[module.__name__] = module
from backdoorkit.cli import main
main()
"""


@pytest.fixture
def environment(tmp_path):
    """An installed plugin, and no other."""
    (tmp_path / "stamp_plugin.py").write_text(PLUGIN)
    metadata = tmp_path / "stamp-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: stamp\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[backdoorkit]\nstamp = stamp_plugin\n")
    return {**os.environ, "PYTHONPATH": str(tmp_path), "BACKDOORKIT_PLUGINS": "stamp"}


def command(environment, *args, code="from backdoorkit.cli import main; main()", **variables):
    return subprocess.run(
        [sys.executable, "-c", code, *args],
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_module_runs_as_the_command_does(environment):
    args = [sys.executable, "-m", "backdoorkit", "--version"]
    result = subprocess.run(args, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.startswith("backdoorkit ")


WITHOUT_TORCH = """
import atexit, sys
atexit.register(lambda: print("torch" in sys.modules, "rich" in sys.modules, file=sys.stderr))
from backdoorkit.cli import main
main()
"""

RUN = ["run", "--dry-run", "--set", "metrics=[{name='slow-metric'}]", "stamp"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--help"], "plugins"),
        (["run", "--help"], "stamp"),
        (["run", "stamp", "--help"], "--poison-rate"),
        (RUN, 'name = "stamp"'),
    ],
)
def test_nothing_heavy_is_imported_before_something_runs(environment, args, expected):
    result = command(environment, *args, code=WITHOUT_TORCH)
    assert expected in result.stdout, result.stderr
    assert result.stderr == "False False\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("backdoorkit r", "run"),
        ("backdoorkit run s", "stamp"),
        ("backdoorkit run stamp --po", "--poison-rate"),
        ("backdoorkit run stamp --label-map all-to-a", "all-to-all"),
        ("backdoorkit run --dr", "--dry-run"),
    ],
)
def test_completion_works_without_torch(environment, words, expected):
    variables = {
        "_BACKDOORKIT_COMPLETE": "bash_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = command(environment, code=WITHOUT_TORCH, **variables)
    assert f"plain,{expected}" in result.stdout.splitlines()
    assert result.stderr == "False False\n"


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_run_ends_with_130_and_no_stack(environment, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUNNER, "run", *RUN[2:]],
        env=environment,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr.readline() == "running\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.strip() == "interrupted; run the same command again to go on"


@pytest.mark.skipif(os.name != "posix", reason="pipes of POSIX")
def test_a_reader_that_leaves_is_no_error(environment):
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-c", "from backdoorkit.cli import main; main()", "run", "--help"],
        env=environment,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert result.stderr == ""


def test_a_broken_plugin_that_is_asked_for_ends_with_three(environment, tmp_path):
    (tmp_path / "stamp_plugin.py").write_text("raise RuntimeError('no')")
    result = command(environment, "run", "stamp")
    assert result.returncode == 3
    assert result.stderr.startswith("Error: plugin 'stamp' (stamp 1.0) is broken: RuntimeError: no")
    assert command(environment, "run", "--help").returncode == 0
    strict = command(environment, "--strict-plugins", "run", "none")
    assert strict.returncode == 3
