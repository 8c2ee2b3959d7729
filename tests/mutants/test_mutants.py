"""The bugs that ``make mutants`` plants still have their place in the code."""

from __future__ import annotations

import ast
from collections import Counter

import pytest

from tests.mutants.table import MUTANTS, Mutant
from tests.support import ROOT


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_can_be_planted(mutant: Mutant) -> None:
    text = (ROOT / mutant.path).read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, f"{mutant.path} has changed: bring the table up to date"
    assert mutant.old != mutant.new
    planted = text.replace(mutant.old, mutant.new)
    if mutant.path.endswith(".py"):
        assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text)), "it changes no code"
    assert mutant.tests
    for test in mutant.tests:
        assert not test.startswith("tests/") or (ROOT / test).exists(), test


def test_no_mutant_is_there_twice() -> None:
    planted = Counter((mutant.path, mutant.old, mutant.new) for mutant in MUTANTS)
    assert planted.most_common(1)[0][1] == 1
    assert len(MUTANTS) >= 30
