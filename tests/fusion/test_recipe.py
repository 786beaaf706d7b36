"""Recipes: TOML in and out, overrides, and errors that name the key and what it takes."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache.errors import UsageError
from fusion import head, recipe, toml


def test_only_the_cache_is_required() -> None:
    made = recipe.parse('cache = "c"')
    assert made.task.kind == "ctc" and made.run_name == "hff" and made.train.steps == 1500
    with pytest.raises(UsageError, match="key cache is missing"):
        recipe.parse("")


def test_the_resolved_recipe_is_a_recipe_for_the_same_run() -> None:
    made = head.resolve(
        recipe.parse(
            'cache = "c"\n[task]\nwhere = {lang = ["en", "it"], take = 1}\n[fuser]\nwidth = 32\n[decoder]\ndropout = 0'
        )
    )
    again = recipe.parse(made.to_toml())
    assert again == made and head.resolve(again) == made
    assert tomllib.loads(made.to_toml())["fuser"]["group"] == 2  # a default, written out
    assert recipe.differences(made, again) == []


def test_overrides_are_toml_values_or_bare_words() -> None:
    made = recipe.parse(
        'cache = "c"',
        [
            "train.steps=7",
            "train.lr=1e-4",
            "name=other",
            "fuser.taps=[1, 3]",
            'task.where.lang="en"',
            "decoder.stack=3",
        ],
    )
    assert (made.train.steps, made.train.lr, made.name) == (7, 1e-4, "other")
    assert (
        made.fuser.taps == ("1", "3") and made.task.where == {"lang": "en"} and made.decoder.parameters == {"stack": 3}
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.step=1", ["unknown key train.step", "steps"]),
        ("cach=x", ["unknown key cach", "cache"]),
        ("train.steps=many", ["train.steps", "'many'", "integer"]),
        ("train.steps=0", ["train.steps", "greater than or equal to 1"]),
        ("train.precision=fp8", ["train.precision", "'fp8'", "'bfloat16'"]),
        ("task.normalise=loud", ["task.normalise", "'basic'"]),
        ("fuser.taps=3", ["fuser.taps", "'all'"]),
        ("name=../x", ["name", "letters"]),
        ("train", ["KEY=VALUE"]),
        ("train.steps.x=1", ["steps"]),
        ("fuser.grop=2", ["unknown key fuser.grop", "group"]),
        ("fuser.kind=hf", ["fuser.kind", "'hf'", "weighted_sum"]),
        ("fuser.width=wide", ["fuser.width", "'wide'", "whole number"]),
        ("decoder.dropout=true", ["decoder.dropout", "a number"]),
        ("decoder.kind=gru", ["decoder.kind", "blstm"]),
        ("fuser.kind=tap", ["fuser.tap is missing"]),
        ("name=.", ["name", "letters"]),
        ("name=a/./b", ["name", "letters"]),
        ("train.lr=inf", ["train.lr", "finite number"]),
        ("train.batch_seconds=inf", ["train.batch_seconds", "finite number"]),
        ("fuser.gate_start=inf", ["fuser.gate_start", "finite number"]),
        ("fuser.branch_scale=nan", ["fuser.branch_scale", "finite number"]),
        ("fuser.width=0", ["fuser.width: 0", "1 or more"]),
        ("decoder.hidden=-1", ["decoder.hidden: -1", "1 or more"]),
        ("decoder.layers=0", ["decoder.layers: 0", "1 or more"]),
        ("decoder.stack=0", ["decoder.stack: 0", "1 or more"]),
    ],
)
def test_an_error_is_one_line_with_the_key_and_what_is_allowed(override: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        head.resolve(recipe.parse('cache = "c"\n[train]\nsteps = 5', [override]))
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_differences_name_the_keys_and_pass_over_ignored_ones() -> None:
    a = recipe.parse('cache = "c"')
    b = recipe.parse('cache = "c"', ["train.lr=0.5", "train.workers=0", 'task.where.lang="en"'])
    assert recipe.differences(a, b, ["train.workers"]) == ["task.where", "task.where.lang", "train.lr"]


def test_a_trial_on_a_handful_is_short_and_has_its_own_name() -> None:
    made = recipe.parse('cache = "c"').limited(20)
    assert (made.limit, made.train.steps, made.run_name) == (20, 50, "hff-limit20")
    assert made.train.warmup < made.train.steps


def test_a_missing_or_broken_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        recipe.read(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("cache = ")
    with pytest.raises(UsageError, match="is not TOML"):
        recipe.read(tmp_path / "bad.toml")


def test_a_recipe_takes_from_another_what_it_does_not_say(tmp_path: Path) -> None:
    base = 'cache = "c"\n[fuser]\nkind = "hff"\nwidth = 32\n[train]\nsteps = 5\nlr = 0.5\n'
    (tmp_path / "base.toml").write_text(base)
    (tmp_path / "middle.toml").write_text('extends = "base.toml"\n[train]\nsteps = 7\n')
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "own.toml").write_text('extends = "../middle.toml"\nname = "own"\n[fuser]\nwidth = 64\n')
    made = recipe.read(tmp_path / "sub" / "own.toml", ["train.lr=0.1"])
    assert (made.name, made.cache, made.train.steps, made.train.lr) == ("own", "c", 7, 0.1)
    assert (made.fuser.kind, made.fuser.parameters) == ("hff", {"width": 64})
    assert recipe.parse(made.to_toml()) == made


def test_a_fuser_of_another_kind_takes_no_parameters_from_the_one_that_it_replaces(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('cache = "c"\n[fuser]\nkind = "hff"\nwidth = 32\n')
    (tmp_path / "own.toml").write_text('extends = "base.toml"\n[fuser]\nkind = "last"\n')
    assert recipe.read(tmp_path / "own.toml").fuser.parameters == {}


def test_what_cannot_be_extended_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('extends = "b.toml"')
    with pytest.raises(UsageError, match="which .*a.toml extends, cannot be read"):
        recipe.read(tmp_path / "a.toml")
    (tmp_path / "b.toml").write_text('extends = "a.toml"')
    with pytest.raises(UsageError, match="b.toml extends a.toml, which extends it in turn"):
        recipe.read(tmp_path / "a.toml")
    (tmp_path / "a.toml").write_text("extends = 3")
    with pytest.raises(UsageError, match="key extends: 3 is not allowed, use the path"):
        recipe.read(tmp_path / "a.toml")


KEYS = st.text(min_size=1, max_size=8)
SCALARS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12), st.integers(-(2**63), 2**63 - 1),
    st.booleans(), st.floats(allow_nan=False),
)  # fmt: skip


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.recursive(
            SCALARS | st.lists(SCALARS, max_size=3),
            lambda v: st.dictionaries(st.text('ab." ', max_size=3), v, max_size=3),
        ),
        max_size=4,
    )
)
def test_any_values_survive_toml(values: dict[str, object]) -> None:
    assert tomllib.loads(toml.dump(values)) == values


def test_another_kind_drops_what_the_file_says_of_its_own() -> None:
    text = 'cache = "c"\n[fuser]\nkind = "hff"\nwidth = 64\ngate_start = 0\n[decoder]\nkind = "linear"\nstack = 4'
    made = recipe.parse(text, ["fuser.kind=weighted_sum", "decoder.kind=blstm"])
    assert (made.fuser.kind, made.fuser.parameters) == ("weighted_sum", {"width": 64})
    assert made.decoder.parameters == {"stack": 4}
    assert recipe.parse(text, ["fuser.kind=hff"]).fuser.parameters == {"width": 64, "gate_start": 0}
    # What is asked for by name stays, so that it is an error.
    with pytest.raises(UsageError, match="gate_start"):
        head.resolve(recipe.parse(text, ["fuser.kind=last", "fuser.gate_start=0"]))
