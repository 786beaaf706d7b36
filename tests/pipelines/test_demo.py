"""The demo's manifests: transcripts as they are, and splits that share no sentence."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featcache import manifest
from featcache.errors import JobError, UsageError
from pipelines.demo import fillets, prompts
from pipelines.demo.splits import groups, sentence_key, split_rows

TRANSCRIPT = """\ufeff; Core sounds
; a second comment

activated: Activated.
beep: a simple beep
tt-somekeys: [sound of keys]
hello: <cheerful> Hello
letters/at: at [@]
letters/space: space [ ]
silence/1: (1 second of silence)
spy-h323: H.323
spy-iax2: IAX (note: does not say "2")
vm-savemessage: or 9 to save this message
conf-adminmenu: conf-adminmenu: Press 1, or 2.
dir-intro: Note: the  directory
activated: Activated twice.
is:
"""


def test_parse_takes_what_is_spoken() -> None:
    parsed = {prompt.id: prompt.text for prompt in prompts.parse(TRANSCRIPT, "en")}
    assert parsed == {
        "activated": "Activated.",
        "letters/at": "at",
        "letters/space": "space",
        "spy-h323": "H. three two three",
        "vm-savemessage": "or nine to save this message",
        "conf-adminmenu": "Press one, or two.",
        "dir-intro": "Note: the directory",
        "is": "",
    }


def test_parse_accepts_windows_lines_and_no_byte_order_mark() -> None:
    assert prompts.parse("a: x\r\nb: y\r\n", "en") == [prompts.Prompt("a", "x"), prompts.Prompt("b", "y")]


@pytest.mark.parametrize(
    ("lang", "text", "spelt"),
    [
        ("en", "3D audio", "three D audio"),
        ("fr", "appuyez sur  5, ou 6.", "appuyez sur cinq, ou six."),
        ("ru", "аш-323", "аш- три два три"),
        ("it", "premere 0", "premere zero"),
        ("es", "sin cifras", "sin cifras"),
    ],
)
def test_digits_are_spelt(lang: str, text: str, spelt: str) -> None:
    assert prompts.spell_digits(text, lang) == spelt


@pytest.mark.parametrize(
    ("prompt_id", "family"),
    [("digits/h-12", "digits"), ("vm-intro", "vm"), ("activated", "single"), ("conf-onlyone", "conf")],
)
def test_family(prompt_id: str, family: str) -> None:
    assert prompts.Prompt(prompt_id, "").family == family


def test_sentence_key_ignores_case_accents_and_marks() -> None:
    assert sentence_key("Ajouté !") == sentence_key("ajoute") == "ajoute"
    assert sentence_key("...") == ""
    assert sentence_key("один") != sentence_key("два")


ROWS = st.lists(
    st.tuples(
        st.sampled_from([f"p{i}" for i in range(30)]),
        st.sampled_from(["", "...", "No.", "no", "NÓ", "yes", "one", "two", "three", "four", "five"]),
    ),
    max_size=60,
)


@given(ROWS, st.randoms(use_true_random=False))
def test_no_prompt_and_no_sentence_is_in_two_splits(rows: list[tuple[str, str]], shuffler: random.Random) -> None:
    ids, texts = [r[0] for r in rows], [r[1] for r in rows]
    splits = split_rows(ids, texts)
    seen: dict[tuple[str, str], str] = {}
    for prompt, text, split in zip(ids, texts, splits, strict=True):
        assert seen.setdefault(("prompt", prompt), split) == split
        if key := sentence_key(text):
            assert seen.setdefault(("text", key), split) == split
    # The order of the rows does not matter.
    order = list(range(len(rows)))
    shuffler.shuffle(order)
    again = split_rows([ids[i] for i in order], [texts[i] for i in order])
    assert again == [splits[i] for i in order]


def test_groups_join_through_others() -> None:
    # a - "x" - b - "y" - c, and d alone; rows without a sentence are joined by their id only
    assert groups(["c", "b", "b", "a", "d", "e"], ["y", "Y!", "x", "x", "", ""]) == [
        "a",
        "a",
        "a",
        "a",
        "d",
        "e",
    ]


def test_shares_of_the_splits() -> None:
    splits = split_rows([f"p{i}" for i in range(1000)], [f"sentence {i}" for i in range(1000)])
    assert (splits.count("test"), splits.count("dev"), splits.count("train")) == (120, 80, 800)


def test_unknown_language_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no prompts in xx"):
        prompts.rows(tmp_path, ["xx"])


def test_missing_transcript_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"core-sounds-en\.txt\.gz is missing: run `pipelines demo fetch`"):
        prompts.rows(tmp_path, ["en"])


def test_link_is_replaced_but_a_folder_is_not(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        prompts.link_audio(tmp_path / name, tmp_path / "out" / "audio")
    assert (tmp_path / "out" / "audio").resolve() == (tmp_path / "two").resolve()
    (tmp_path / "other" / "audio").mkdir(parents=True)
    with pytest.raises(JobError, match="in the way"):
        prompts.link_audio(tmp_path / "one", tmp_path / "other" / "audio")


SCRIPT = r"""
-- dialogId("old", "font_big", "not spoken")
-- dialogStr("niet gesproken")
dialogId("let-m-divna", "font_small", "What kind of strange ship is that?")
dialogStr("Wat is dit voor raar schip?")

dialogId("let-v-oko", "font_big", "He said \"yes\".")
dialogStr("Hij zei \"ja\",\nen nog \"eens\".")
dialogId("lonely", "font_big", "No Dutch follows.")
"""


def test_fillets_parse() -> None:
    assert fillets.parse(SCRIPT) == [
        fillets.Line("let-m-divna", "small", "Wat is dit voor raar schip?", "What kind of strange ship is that?"),
        fillets.Line("let-v-oko", "big", 'Hij zei "ja", en nog "eens".', 'He said "yes".'),
    ]


@pytest.mark.real
def test_real_prompts(speech_root: Path, tmp_path: Path) -> None:
    languages = [lang for lang, voice in prompts.VOICES.items() if (speech_root / "asterisk/sounds" / voice).is_dir()]
    rows = prompts.rows(speech_root, languages)
    assert "en" in languages
    assert sum(row.labels["lang"] == "en" for row in rows) == 549
    assert len({row.id for row in rows}) == len(rows)
    assert not [row.text for row in rows if re.search(r"[0-9\[\]()<>]", row.text or "")]
    assert all(row.duration > 0 for row in rows if row.id != "ru/is")

    where: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        split = str(row.labels["split"])
        where.setdefault(("prompt", str(row.labels["prompt"])), set()).add(split)
        if row.text:
            where.setdefault(("text", sentence_key(row.text)), set()).add(split)
    assert [key for key, splits in where.items() if len(splits) > 1] == []
    tests = sum(row.labels["split"] == "test" for row in rows)
    assert 0.10 * len(rows) <= tests <= 0.12 * len(rows)

    # What is written is read back the same, and leads to the recordings.
    prompts.link_audio(speech_root / "asterisk" / "sounds", tmp_path / "audio")
    manifest.write(tmp_path / "manifest.jsonl", rows)
    back = manifest.read(tmp_path / "manifest.jsonl")
    assert back == rows
    assert all(manifest.resolve(row, tmp_path / "manifest.jsonl").is_file() for row in back[:20])
