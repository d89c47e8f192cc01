"""Help, listings and configurations never wait for torch."""

from __future__ import annotations

import json
import os
import pkgutil
import subprocess
import sys

import pytest

import backdoorkit.cli
import backdoorkit.hooks
from backdoorkit.hooks.registry import PluginState, load_registry

HEAVY = (
    "torch",
    "torchvision",
    "sklearn",
    "scipy",
    "matplotlib",
    "rich",
    "datasets",
    "numpy",
    "ray",
    "fsspec",
    "safetensors",
)

COMMANDS = {
    "help": ["--help"],
    "version": ["--version"],
    "help of run": ["run", "--help"],
    "help of a step": ["run", "badnets", "--help"],
    "help of report": ["report", "--help"],
    "papers' tables": ["report", "--list-published"],
    "unknown run": ["report", "no-such-run", "--store", "no-such-store"],
    "help of scan": ["scan", "--help"],
    "help of repair": ["repair", "--help"],
    "help of calibrate": ["calibrate", "--help"],
    "list": ["plugins", "list", "--json"],
    "plain list": ["plugins", "list"],
    "show": ["plugins", "show", "digits"],
    "schema": ["plugins", "show", "digits", "--schema"],
    "unknown name": ["plugins", "show", "no-such-method"],
}

PROBE = """
import sys
from backdoorkit.cli import main
sys.argv = ["backdoorkit", *sys.argv[2:]]
try:
    main()
finally:
    heavy = [name for name in {heavy!r} if name in sys.modules]
    print("HEAVY", *heavy, file=sys.stderr)
"""


def python(code, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, "probe", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def heavy_modules(done):
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("HEAVY")]
    return line.split()[1:]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_light_command_imports_nothing_heavy(command):
    done = python(PROBE.format(heavy=HEAVY), *COMMANDS[command])
    assert done.returncode in (0, 2), done.stderr
    assert heavy_modules(done) == []


def test_completion_imports_nothing_heavy():
    done = python(
        PROBE.format(heavy=HEAVY),
        _BACKDOORKIT_COMPLETE="bash_complete",
        COMP_WORDS="backdoorkit plugins sh",
        COMP_CWORD="2",
    )
    assert "show" in done.stdout
    assert heavy_modules(done) == []


def light_modules():
    modules = [
        "backdoorkit",
        "backdoorkit.errors",
        "backdoorkit.contracts",
        "backdoorkit.data.catalog",
        "backdoorkit.data.options",
        "backdoorkit.handed.calibration",
        "backdoorkit.handed.request",
        "backdoorkit.models.catalog",
        "backdoorkit.pipeline.keys",
        "backdoorkit.pipeline.plan",
        "backdoorkit.pipeline.recipe",
        "backdoorkit.pipeline.store",
        "backdoorkit.pipeline.results",
        "backdoorkit.report.html",
        "backdoorkit.report.making",
        "backdoorkit.report.pictures",
        "backdoorkit.report.runs",
    ]
    for package in (backdoorkit.hooks, backdoorkit.cli):
        prefix = package.__name__ + "."
        modules += [module.name for module in pkgutil.iter_modules(package.__path__, prefix)]
    modules += [
        record.module for record in load_registry().plugins if record.state is PluginState.OK
    ]
    return sorted(set(modules))


@pytest.mark.parametrize("module", light_modules())
def test_a_light_module_imports_no_torch(module):
    code = f"import sys; import {module}; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False"]


def test_the_list_takes_little_processor_time():
    code = """
import json, sys, time
from backdoorkit.hooks.registry import load_registry
registry = load_registry()
print(json.dumps({"seconds": time.process_time(), "methods": len(registry.methods())}))
"""
    facts = json.loads(python(code).stdout)
    assert facts["methods"] > 0
    # A tenth of this is usual; importing torch alone takes twice as much.
    assert facts["seconds"] < 1.0
