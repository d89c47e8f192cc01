"""The HTML report: one file, everything escaped, nothing from outside the store."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import re

import attrs
import numpy as np
import pytest
from safetensors.numpy import save

from backdoorkit.pipeline.results import AttackCost, Detection, Finding
from backdoorkit.pipeline.store import Store
from backdoorkit.report.making import make_report
from backdoorkit.report.runs import read_run

from .conftest import cell, row, table

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{ 7*7 }}"
KEY = "a" * 64


class Tags(html.parser.HTMLParser):
    """Start tags with their attributes, and pieces of text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, found):
        self.tags.append((tag, dict(found)))

    def handle_data(self, data):
        self.texts.append(data)


def rendered(*folders, **more):
    return make_report([read_run(folder) for folder in folders], **more).to_html()


def test_a_hostile_name_is_text_wherever_it_is_shown(write_run):
    names = {"data": HOSTILE, "model": HOSTILE, "attack": HOSTILE, "seed": 0}
    hostile = attrs.evolve(
        row("badnets", HOSTILE, cell(ACC=0.5, ASR=0.5, DER=0.5)),
        **dict.fromkeys(("data", "model", "attack"), HOSTILE),
    )
    before = attrs.evolve(hostile, defense="no defense")
    failed = attrs.evolve(hostile, defense="ft", cells=(cell(0, HOSTILE),))
    made = table(
        *(before, hostile, failed),
        detections=(Detection(**names, detector=HOSTILE, captions={"x": HOSTILE}, score=1.0),),
        findings=(Finding(**names, analysis=HOSTILE, values={HOSTILE: 1.0}),),
        attacks=(AttackCost(**names),),
    )
    step = {
        **{"kind": "victim", "key": KEY, "label": HOSTILE, "seed": 0, "inputs": {}},
        **{"reused": False, "error": HOSTILE, "artifact": None},
        "facts": {"imported": HOSTILE, "hardware": {"name": HOSTILE}},
    }
    folder = write_run(made, command=HOSTILE, device=HOSTILE, steps=[step])
    (folder / "recipe.toml").write_text(HOSTILE)
    text = rendered(folder, title=HOSTILE)
    found = Tags(text)
    assert sum(tag == "script" for tag, _ in found.tags) == 1  # the report's own
    assert not any(tag == "img" and values.get("src") == "x" for tag, values in found.tags)
    assert not any(name.startswith("on") for _, values in found.tags for name in values)
    assert "49" not in re.sub("[^{}0-9]", "", "".join(t for t in found.texts if "7*7" in t))
    assert sum(HOSTILE in piece for piece in found.texts) > 10


def test_nothing_is_loaded_and_nothing_may_be(write_run, some_table):
    text = rendered(write_run(some_table))
    found = Tags(text)
    assert not {"link", "iframe", "object", "base", "form"} & {tag for tag, _ in found.tags}
    sources = [v for _, values in found.tags for k, v in values.items() if k in ("src", "srcset")]
    assert all(source.startswith("data:image/") for source in sources)
    assert "http" not in re.sub(r'http-equiv="Content-Security-Policy"', "", text)
    (policy,) = (v["content"] for t, v in found.tags if t == "meta" and "http-equiv" in v)
    assert policy.startswith("default-src 'none'; img-src data:;")
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_section_is_there(write_run, some_table):
    texts = Tags(rendered(write_run(some_table))).texts
    for title in ("Results", "Averages over attacks", "Defense effectiveness (DER, %)", "Record"):
        assert title in texts
    assert "backdoorkit run badnets ft" in texts
    assert "control missing: the same model without an attack; add the attack 'none'." in texts
    assert texts.count("seed 1") == 6


# -- pictures out of the store ---------------------------------------------------------------------


@pytest.fixture
def with_victim(write_run, some_table, store):
    """A run with a victim that has samples, and a step for it."""
    clean = np.full((2, 3, 8, 8), 100, dtype=np.uint8)
    with Store(store).create("victim", KEY) as draft:
        tensors = {"clean": clean, "triggered": clean + 9, "trigger": clean[:1]}
        draft.write_bytes("samples.safetensors", save(tensors))
        history = [{"loss": 2.0, "accuracy": 0.5}, {"loss": 1.0, "accuracy": 0.9}]
        draft.facts["training"] = {"history": history}
    step = {
        **{"kind": "victim", "key": KEY, "label": "train small-cnn, attack badnets, seed 0"},
        **{"seed": 0, "inputs": {}, "reused": False, "error": None, "artifact": KEY[:24]},
        "facts": {"training": {"history": history}, "cost": {"seconds": 3.0}},
    }
    return write_run(some_table, steps=[step])


def test_trigger_samples_and_curves_of_a_victim_are_shown(with_victim):
    found = Tags(rendered(with_victim))
    alts = [values["alt"] for tag, values in found.tags if tag == "img"]
    assert alts == ["the trigger on grey", "clean and triggered test images"]
    assert "train small-cnn, attack badnets" in found.texts
    assert sum(tag == "polyline" for tag, _ in found.tags) == 2


def test_samples_that_do_not_match_their_checksum_are_not_shown(with_victim, store):
    path = store / "artifacts" / "victim" / KEY[:24] / "samples.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert not any(tag == "img" for tag, _ in Tags(rendered(with_victim)).tags)


@pytest.mark.parametrize("where", ["outside", "no picture", "inside"])
def test_only_pictures_of_the_store_are_shown(write_run, store, tmp_path, where):
    png = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    content = b"secret" if where == "no picture" else png
    with Store(store).create("analysis", KEY) as draft:
        draft.write_bytes("look.png", content)
    path = store / "artifacts" / "analysis" / KEY[:24] / "look.png"
    if where == "outside":
        path = tmp_path / "analysis" / ("b" * 24) / "look.png"
        path.parent.mkdir(parents=True)
        path.write_bytes(png)
    found = Finding(
        **{"data": "d", "model": "m", "attack": "badnets", "analysis": "look", "seed": 0},
        **{"values": {"x": 1.0}, "figures": {"look": str(path)}, "captions": {"look": "Seen."}},
    )
    text = rendered(write_run(table(row("badnets", "no defense", cell()), findings=(found,))))
    assert ("data:image/png" in text) == (where == "inside")
    assert ("The figure is not in the store." in text) == (where != "inside")
    assert "Seen." in text
