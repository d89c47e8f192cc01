"""The HTML report in a real browser: it sorts, nothing overflows on a phone, nothing complains."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import pytest

from backdoorkit.report.making import make_report
from backdoorkit.report.runs import read_run

from .conftest import cell, row, table

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium (Debian: apt-get install chromium)"
)

#: Runs in a frame as wide as a phone, and tells the page around it what it saw.
PROBE = """
const table = document.querySelector("#results table");
const order = () => Array.from(table.tBodies[0].rows, (r) => r.cells[1].firstChild.textContent);
const click = (title) => Array.from(table.querySelectorAll("th button"))
  .find((b) => b.textContent.startsWith(title)).click();
const seen = { before: order() };
const clicks = [["down", "ACC"], ["up", "ACC"], ["again", "ACC"], ["names", "defense"]];
for (const [name, title] of clicks) {
  click(title);
  seen[name] = order();
  seen[name + "-sort"] = table.querySelector("th[aria-sort]")?.getAttribute("aria-sort") ?? "none";
}
for (const details of document.querySelectorAll("details")) details.open = true;
seen.width = document.documentElement.clientWidth;
seen.scrolls = document.documentElement.scrollWidth;
seen.wide = Array.from(document.querySelectorAll("body *")).filter((e) =>
  e.getBoundingClientRect().right > seen.width + 1 && !e.closest(".wide, .sheet, pre")
).map((e) => e.tagName + " " + e.className);
seen.errors = window.errors;
parent.postMessage(JSON.stringify(seen), "*");
"""


def browse(page, folder, *flags):
    """The page's document as it is once its scripts have run, and what was logged."""
    command = [
        *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        *(
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={folder}",
            "--enable-logging=stderr",
            "--v=0",
        ),
        *("--virtual-time-budget=4000", *flags, "--dump-dom", page.as_uri()),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture
def page(write_run, tmp_path):
    rows = [row("badnets", "no defense", cell(ACC=0.9, ASR=0.99))]
    for defense, acc in (("ft", 0.3), ("fp", None), ("tsbd", 0.85), ("nad", 0.095)):
        one = cell(0, "broke") if acc is None else cell(ACC=acc, ASR=0.1, DER=acc)
        rows.append(row("badnets", defense, one))
    long = "a-defense-with-a-name-that-is-much-too-long-for-any-phone"
    rows.append(row("badnets", long, cell(ACC=0.5, ASR=0.2, DER=0.5)))
    folder = write_run(table(*rows), "a-run-with-a-name-that-does-not-break-" * 3, device="x" * 200)
    path = tmp_path / "report.html"
    path.write_text(make_report([read_run(folder)]).to_html(), encoding="utf-8")
    return path


@pytest.fixture
def seen(page, tmp_path):
    """What the probe tells, from inside a frame that is 390 pixels wide."""
    text = page.read_text(encoding="utf-8")
    # The probe is no part of the report, whose policy would keep it out.
    text = re.sub(r"<meta http-equiv=.*?>", "", text)
    listener = (
        "<script>errors = []; addEventListener('error', (e) => errors.push(e.message));</script>"
    )
    text = text.replace("<head>", f"<head>{listener}").replace(
        "</body>", f"<script>{PROBE}</script>"
    )
    inner, outer = tmp_path / "inner.html", tmp_path / "outer.html"
    inner.write_text(text, encoding="utf-8")
    outer.write_text(
        "<script>addEventListener('message', (e) => "
        "{ document.documentElement.dataset.seen = e.data; });</script>"
        f'<iframe src="{inner.as_uri()}" style="width:390px;height:844px;border:0"></iframe>',
        encoding="utf-8",
    )
    dump, console = browse(outer, tmp_path / "profile")
    found = re.search(r'data-seen="([^"]*)"', dump)
    assert found is not None, dump[:500]
    return json.loads(html.unescape(found[1])) | {"console": console}


def test_a_click_sorts_and_nothing_overflows_on_a_phone(seen):
    long = "a-defense-with-a-name-that-is-much-too-long-for-any-phone"
    assert seen["before"] == ["no defense", "ft", "fp", "tsbd", "nad", long]
    # By number, and what failed stands last in either order.
    assert seen["down"] == ["no defense", "tsbd", long, "ft", "nad", "fp"]
    assert seen["down-sort"] == "descending"
    assert seen["up"] == ["nad", "ft", long, "tsbd", "no defense", "fp"]
    assert seen["up-sort"] == "ascending"
    assert (seen["again"], seen["again-sort"]) == (seen["before"], "none")
    assert seen["names"] == ["tsbd", "no defense", "nad", "ft", "fp", long]
    assert seen["width"] == 390
    assert seen["scrolls"] == 390
    assert seen["wide"] == []
    assert seen["errors"] == seen["console"] == []


def test_the_report_s_own_policy_lets_its_script_run_and_no_other(page, tmp_path):
    dump, console = browse(page, tmp_path / "profile")
    assert console == []
    assert '<button type="button">' in dump
    text = page.read_text(encoding="utf-8")
    page.write_text(text.replace("</body>", "<script>document.title = 'taken'</script></body>"))
    dump, console = browse(page, tmp_path / "other-profile")
    assert "<title>taken" not in dump
    assert any("Content Security Policy" in line for line in console)
