"""The suites turn checks into tests that pytest shows by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from backdoorkit.testing import checks_for, suites
from backdoorkit.testing.checks import title

FILE = """
from backdoorkit.testing import (
    AttackSuite, DatasetSuite, DefenseSuite, DetectorSuite, MetricSuite, ModelSuite
)


class TestDigits(DatasetSuite):
    method = "digits"
    config = {config}
"""


def run_pytest(folder, config):
    (folder / "test_digits.py").write_text(FILE.format(config=config))
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def test_a_suite_runs_every_check_by_name_and_importing_suites_runs_none(tmp_path):
    done = run_pytest(tmp_path, {"size": 16})
    expected = [title(check) for check in checks_for(suites.DatasetSuite.kind)]
    assert f"{len(expected)} passed" in done.stdout
    for name in expected:
        assert f"TestDigits::test_contract[{name}] PASSED" in done.stdout


def test_a_wrong_option_of_a_suite_is_an_error(tmp_path):
    done = run_pytest(tmp_path, {"sise": 16})
    assert done.returncode == 1
    assert "sise: unknown key; did you mean 'size'?" in done.stdout


@pytest.mark.parametrize("name", suites.__all__)
def test_no_suite_is_collected_by_itself(name):
    assert not name.startswith("Test")


def test_the_command_needs_no_pytest():
    code = "import sys; import backdoorkit.testing.checks; print('pytest' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
