"""What the paper says, answered from the table: yes, no, or not at this budget.

A size, a speed or a peak of memory is compared as it was measured. An error rate is judged by the paired bootstrap
over test utterances: "better" means that the whole 95 % interval of the difference is below zero, "not worse" that its
upper end is at most 2 % of the reference's rate. No verdict is given after a budget that is too small for one, or
where a row has not left CTC's start, at which hardly any word is right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from fusion.comparison import compare
from pipelines.reproduce.entries import ENTRIES
from pipelines.reproduce.table import Row

NOT_TESTABLE = "not testable at this budget"
RIVALS = ("bitfit", "lora", "adapters")
STARTED = 0.9
"""A word error rate at or above it says that a row has learnt nothing yet."""
MARGIN, FEWER, FASTER, CACHED_FASTER = 0.02, 0.97, 1.53, 10.0


@dataclass(frozen=True)
class Claim:
    claim: str
    holds: str
    """yes, no or `NOT_TESTABLE`."""
    figure: str


def answer(rows: Mapping[str, Row], *, judges: bool) -> list[Claim]:
    """Every claim.

    Args:
        rows: by name; claims about a row that is not there cannot be answered.
        judges: whether the budget is large enough for error rates.
    """
    answers = _Answers(rows, judges)
    for rival in RIVALS:
        answers.smaller("hff", rival, "has fewer trainable parameters than", "encoder_parameters", "{:,}")
        answers.smaller("hff", rival, "trains faster than", "epoch_s", "{:,.1f} s an epoch")
        answers.smaller("hff", rival, "needs less memory than", "peak_memory_mb", "{:,.0f} MB")
        answers.better("hff", rival)
    for rival in RIVALS:
        answers.no_longer("hff_longer", rival)
        answers.better("hff_longer", rival)
    answers.not_worse("hff_adapters", "full")
    answers.fewer("hff_adapters", "full")
    answers.faster("hff_adapters", "full")
    answers.epochs_faster("hff", "full")
    answers.better("hff_adapters", "last_tap_adapters")
    return answers.claims


class _Answers:
    def __init__(self, rows: Mapping[str, Row], judges: bool) -> None:
        self.rows, self.judges = rows, judges
        self.claims: list[Claim] = []

    def smaller(self, one: str, other: str, text: str, field: str, form: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            left, right = getattr(a, field), getattr(b, field)
            return _yes(left < right), f"{form.format(left)} against {form.format(right)}"

        self._ask(one, other, text, judge)

    def no_longer(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            left, right = a.steps / a.steps_per_s, b.steps / b.steps_per_s
            return _yes(left <= right), f"{left:,.0f} against {right:,.0f} s"

        self._ask(one, other, "trains in no more time than", judge)

    def better(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            difference, low, high = _difference(a, b)
            return self._of_rates(
                a, b, high < 0
            ), f"{_rates(a, b)}, difference {difference:+.3f} ({low:+.3f}, {high:+.3f})"

        self._ask(one, other, "has a lower WER than", judge)

    def not_worse(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            share = [value / b.wer for value in _difference(a, b)]
            text = "{:+.1%} of it ({:+.1%}, {:+.1%})".format(*share)
            return self._of_rates(a, b, share[2] <= MARGIN), f"{_rates(a, b)}, difference {text}"

        self._ask(one, other, f"has a WER not worse, by at most {MARGIN:.0%} relative, than", judge)

    def fewer(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            share = 1 - a.encoder_parameters / b.encoder_parameters
            return _yes(share >= FEWER), f"{a.encoder_parameters:,} against {b.encoder_parameters:,}: {share:.1%} fewer"

        text = f"has at least {FEWER:.0%} fewer trainable parameters, fusion counted among them, than"
        self._ask(one, other, text, judge)

    def faster(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            ratio = a.steps_per_s / b.steps_per_s
            text = f"{a.steps_per_s:.2f} against {b.steps_per_s:.2f} steps a second: {ratio:.2f} times"
            warm = "" if a.warm_start_s is None else f"; warm start {a.warm_start_s:,.0f} s more"
            return _yes(ratio >= FASTER), text + warm

        self._ask(one, other, f"trains at least {FASTER - 1:.0%} faster than", judge)

    def epochs_faster(self, one: str, other: str) -> None:
        def judge(a: Row, b: Row) -> tuple[str, str]:
            ratio = b.epoch_s / a.epoch_s
            return _yes(
                ratio >= CACHED_FASTER
            ), f"{a.epoch_s:,.1f} against {b.epoch_s:,.1f} s an epoch: {ratio:.1f} times"

        self._ask(one, other, f"trains at least {CACHED_FASTER:.0f} times faster per epoch than", judge)

    def _ask(self, one: str, other: str, text: str, judge: Callable[[Row, Row], tuple[str, str]]) -> None:
        titles = {entry.name: entry.title for entry in ENTRIES}
        missing = [titles[name] for name in (one, other) if name not in self.rows]
        if missing:
            holds, figure = NOT_TESTABLE, f"{' and '.join(missing)} not trained"
        else:
            holds, figure = judge(self.rows[one], self.rows[other])
        self.claims.append(Claim(f"{titles[one]} {text} {titles[other]}", holds, figure))

    def _of_rates(self, a: Row, b: Row, holds: bool) -> str:
        return _yes(holds) if self.judges and max(a.wer, b.wer) < STARTED else NOT_TESTABLE


def _yes(holds: bool) -> str:
    return "yes" if holds else "no"


def _rates(a: Row, b: Row) -> str:
    return f"{a.wer:.3f} against {b.wer:.3f}"


def _difference(a: Row, b: Row) -> tuple[float, float, float]:
    """WER of `a` minus that of `b` on the same utterances, with the ends of its interval."""
    value, low, high = compare([Path(b.run), Path(a.run)])[1]["wer_difference"]
    return value, low, high
