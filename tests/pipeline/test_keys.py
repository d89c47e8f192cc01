"""Content keys: equal for equal content, different for different content, on every machine."""

from __future__ import annotations

import enum
import math
from pathlib import PurePosixPath

import attrs
import pytest

from backdoorkit import PoisonOptions, option
from backdoorkit.pipeline.keys import canonical_json, content_key


class Colour(enum.StrEnum):
    RED = "red"


@attrs.frozen(kw_only=True)
class Options:
    rate: float = option(0.1, help="Rate.")
    note: str | None = option(None, help="Note.")


def test_a_key_is_the_hash_of_sorted_json():
    # sha256 of {"a":1,"b":[0.1,null]}
    known = "e4a9ad4b968106893e46864fc11d30b18e50cb866ef02d73d039465465bca1e0"
    assert content_key(b=(0.1, None), a=1) == known
    assert content_key(a=1, b=[0.1, None]) == known


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, 1.0),
        (1, True),
        ("1", 1),
        (0.1, math.nextafter(0.1, 1)),
        ([], {}),
        (None, "null"),
        ([1, 2], [2, 1]),
    ],
)
def test_different_values_have_different_keys(left, right):
    assert content_key(value=left) != content_key(value=right)


def test_enums_paths_and_configurations_become_plain():
    values = {"colour": Colour.RED, "path": PurePosixPath("a/b"), "options": Options()}
    plain = {"colour": "red", "path": "a/b", "options": {"rate": 0.1}}
    assert canonical_json(values) == canonical_json(plain)


def test_every_option_of_a_configuration_counts():
    assert content_key(c=PoisonOptions()) != content_key(c=PoisonOptions(target=1))


@pytest.mark.parametrize("value", [{1, 2}, b"x", object(), {1: 2}])
def test_what_has_no_one_plain_form_is_refused_with_its_place(value):
    with pytest.raises(TypeError, match=r"value\.deep\[0\]"):
        content_key(deep=[value])
