"""The claims: what is a yes, what a no, and what cannot be told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featcache.errors import UsageError
from pipelines.reproduce import entries, table
from pipelines.reproduce.claims import NOT_TESTABLE, Claim, answer
from pipelines.reproduce.table import Row

WORDS = 10


def make_row(folder: Path, name: str, errors: list[int], **values: float) -> Row:
    """A row with a run that has these word errors, one number an utterance of ten words."""
    run = folder / name
    run.mkdir(parents=True)
    rows = [
        {"id": f"u{i}", "reference": "x", "words": WORDS, "word_errors": n, "characters": 50, "character_errors": n}
        for i, n in enumerate(errors)
    ]
    (run / "utterances.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "metrics.json").write_text(json.dumps({"task": "ctc", "best_step": 1}))
    wer = sum(errors) / (WORDS * len(errors))
    fields = {
        "name": name, "title": name, "wer": wer, "wer_ci95": (wer, wer), "cer": wer, "dev_wer": wer,
        "encoder_parameters": 100, "encoder_parameters_pct": 1.0, "fusion_parameters": 10, "decoder_parameters": 20,
        "peak_memory_mb": 100.0, "epoch_s": 10.0, "steps_per_s": 1.0, "time_to_best_s": 1.0, "hours_per_hour": 1.0,
        "steps": 1, "best_step": 1, "warm_start_s": None, "break_even_epoch": None, "run": str(run),
    }  # fmt: skip
    return Row(**(fields | values))  # type: ignore[arg-type]


def ask(rows: list[Row], text: str, judges: bool = True) -> Claim:
    found = [claim for claim in answer({row.name: row for row in rows}, judges=judges) if text in claim.claim]
    assert len(found) == 1, text
    return found[0]


def test_every_claim_is_answered() -> None:
    claims = answer({}, judges=True)
    assert len(claims) == (4 + 2) * 3 + 3 + 1 + 1
    assert {claim.holds for claim in claims} == {NOT_TESTABLE}
    assert "LoRA not trained" in ask([], "HFF (cached) has a lower WER than LoRA").figure


def test_sizes_speeds_and_memory_are_judged_at_any_budget(tmp_path: Path) -> None:
    hff = make_row(tmp_path, "hff", [1] * 30, encoder_parameters=50, epoch_s=20.0, peak_memory_mb=90.0)
    bitfit = make_row(tmp_path, "bitfit", [1] * 30)
    rows = [hff, bitfit]
    claim = ask(rows, "fewer trainable parameters than BitFit", judges=False)
    assert (claim.holds, claim.figure) == ("yes", "50 against 100")
    assert ask(rows, "trains faster than BitFit", judges=False).holds == "no"
    assert ask(rows, "less memory than BitFit", judges=False).holds == "yes"
    assert ask(rows, "HFF (cached) has a lower WER than BitFit", judges=False).holds == NOT_TESTABLE


def test_better_means_the_whole_interval(tmp_path: Path) -> None:
    hff = make_row(tmp_path, "hff", [2] * 40)
    clearly = make_row(tmp_path, "bitfit", [3] * 40)
    hardly = make_row(tmp_path, "lora", [2] * 20 + [0] * 9 + [4] * 11)
    lost = make_row(tmp_path, "adapters", [9] * 39 + [10])
    rows = [hff, clearly, hardly, lost]
    assert ask(rows, "HFF (cached) has a lower WER than BitFit").holds == "yes"
    assert "-0.100 (-0.100, -0.100)" in ask(rows, "HFF (cached) has a lower WER than BitFit").figure
    assert hardly.wer > hff.wer
    assert ask(rows, "HFF (cached) has a lower WER than LoRA").holds == "no"
    # a row that has learnt nothing is no rival
    assert ask(rows, "HFF (cached) has a lower WER than Adapters").holds == NOT_TESTABLE


def test_as_long_as_a_rival(tmp_path: Path) -> None:
    longer = make_row(tmp_path, "hff_longer", [2] * 40, steps=700, steps_per_s=7.0)
    lora = make_row(tmp_path, "lora", [3] * 40, steps=100, steps_per_s=1.0)
    claim = ask([longer, lora], "7 x steps trains in no more time than LoRA", judges=False)
    assert (claim.holds, claim.figure) == ("yes", "100 against 100 s")
    assert ask([longer, lora], "7 x steps has a lower WER than LoRA").holds == "yes"
    slower = make_row(tmp_path / "slower", "hff_longer", [2] * 40, steps=700, steps_per_s=6.9)
    assert ask([slower, lora], "7 x steps trains in no more time than LoRA").holds == "no"


def test_not_worse_is_the_upper_end_against_two_per_cent(tmp_path: Path) -> None:
    full = make_row(tmp_path, "full", [5] * 200)
    same = make_row(tmp_path, "hff_adapters", [5] * 200)
    claim = ask([full, same], "not worse")
    assert (claim.holds, "+0.0% of it" in claim.figure) == ("yes", True)
    noisy = make_row(tmp_path / "noisy", "hff_adapters", [4] * 100 + [6] * 100)
    assert noisy.wer == full.wer
    assert ask([full, noisy], "not worse").holds == "no"


def test_what_of_hff_with_adapters_is_the_trees(tmp_path: Path) -> None:
    with_last_tap = make_row(tmp_path, "last_tap_adapters", [5] * 30)
    with_tree = make_row(tmp_path, "hff_adapters", [4] * 30)
    assert ask([with_tree, with_last_tap], "lower WER than last tap + Adapters").holds == "yes"
    as_good = make_row(tmp_path / "as good", "hff_adapters", [5] * 30)
    assert ask([as_good, with_last_tap], "lower WER than last tap + Adapters").holds == "no"


def test_adapters_with_hff_against_full_fine_tuning(tmp_path: Path) -> None:
    full = make_row(tmp_path, "full", [5] * 9, encoder_parameters=1000, steps_per_s=1.0, epoch_s=100.0)
    both = make_row(
        tmp_path, "hff_adapters", [5] * 9, encoder_parameters=30, steps_per_s=1.54, epoch_s=60.0, warm_start_s=12.0
    )
    hff = make_row(tmp_path, "hff", [5] * 9, epoch_s=10.0)
    rows = [full, both, hff]
    assert ask(rows, "97% fewer").holds == "yes"
    faster = ask(rows, "53% faster")
    assert (faster.holds, faster.figure.count("1.54")) == ("yes", 2)
    assert "warm start 12 s more" in faster.figure
    assert ask(rows, "10 times faster per epoch").holds == "yes"
    slower = make_row(tmp_path / "slower", "hff_adapters", [5] * 9, encoder_parameters=31, steps_per_s=1.52)
    assert ask([full, slower], "97% fewer").holds == "no"
    assert ask([full, slower], "53% faster").holds == "no"


def test_break_even(tmp_path: Path) -> None:
    hff = make_row(tmp_path, "hff", [1], epoch_s=10.0)
    full = make_row(tmp_path, "full", [1], epoch_s=60.0)
    rows = {row.name: row for row in (hff, full)}
    # after 3 epochs: 120 + 30 against 180
    assert table._break_even(full, rows, 120.0) == 3
    assert table._break_even(hff, rows, 120.0) == 3
    # after 2 epochs both have taken as long: ahead after the third
    assert table._break_even(full, rows, 100.0) == 3
    assert table._break_even(full, rows, None) is None
    slow = make_row(tmp_path / "slow", "hff", [1], epoch_s=60.0)
    assert table._break_even(full, {"hff": slow, "full": full}, 1.0) is None


def test_rows_and_scales_are_named() -> None:
    assert [entry.name for entry in entries.select(["lora", "hff"])] == ["hff", "lora"]
    with pytest.raises(UsageError, match="no row best in the table: choose from hff"):
        entries.select(["best"])
    with pytest.raises(UsageError, match="hff_adapters starts from the head of row hff"):
        entries.select(["hff_adapters"])
    with pytest.raises(UsageError, match="choose from smoke, overnight, full"):
        entries.scale_of("huge")


def test_the_cache_of_a_model_and_a_manifest() -> None:
    assert table.default_cache("package:whisper-base", Path("data/demo/manifest.jsonl")) == Path("caches/demo")
    mine = table.default_cache("hf:/models/w2v", Path("data/libri/all.jsonl"))
    assert mine == Path("caches/reproduce/hf-models-w2v-libri-all")


def test_rows_differ_in_their_fuser_alone() -> None:
    from fusion import recipe

    budget = entries.scale_of("overnight")
    shared = recipe.read(entries.BASE_RECIPE, budget.overrides)
    made = [table.recipe_of(entry, shared, budget) for entry in entries.ENTRIES]
    for settings in made:
        changed = [key for key in recipe.differences(made[0], settings) if key != "name"]
        more = ["train.eval_every", "train.steps"] if "longer" in settings.name else []
        assert sorted(key for key in changed if not key.startswith("fuser.")) == more
        assert settings.fuser.parameters["width"] == 64
    assert len({settings.name for settings in made}) == len(made)


def test_a_recipe_without_word_errors_is_refused_at_once(tmp_path: Path) -> None:
    lang = entries.BASE_RECIPE.with_name("lang.toml")
    with pytest.raises(UsageError, match=r"lang\.toml: the table is of word error rates, and task 'classify' has none"):
        table.reproduce("smoke", "package:none", tmp_path / "none.jsonl", tmp_path / "cache", base=lang)
    assert not (tmp_path / "cache").exists()
