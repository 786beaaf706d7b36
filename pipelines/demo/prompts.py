"""Telephone prompts in five languages as a manifest.

Transcripts are lines `id: text`; an id is the recording's path without its suffix. One voice reads each
language (English and Spanish are the same speaker), so language and voice cannot be told apart here.
"""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from featcache import audio, manifest
from featcache.errors import AudioError, JobError, UsageError
from pipelines.demo.splits import split_rows

#: The folder of each language's recordings, below `asterisk/sounds`.
VOICES = {
    "en": "en_US_f_Allison",
    "es": "es_MX_f_Allison",
    "fr": "fr_CA_f_June",
    "it": "it_IT_m_Carlo",
    "ru": "ru_RU_f_IvrvoiceRU",
}

#: Prompts name the keys of a telephone, so digits are read one by one.
DIGITS = {
    "en": "zero one two three four five six seven eight nine".split(),
    "es": "cero uno dos tres cuatro cinco seis siete ocho nueve".split(),
    "fr": "zéro un deux trois quatre cinq six sept huit neuf".split(),
    "it": "zero uno due tre quattro cinque sei sette otto nove".split(),
    "ru": "ноль один два три четыре пять шесть семь восемь девять".split(),
}

#: Sounds without speech in every language, whatever their transcripts say ("un suono beep").
TONES = frozenset(
    ("ascending-2tone", "beep", "beeperr", "confbridge-join", "confbridge-leave", "descending-2tone", "tt-monkeys")
)

_SYMBOL = re.compile(r"\[[^\w\[\]]*\]")  # "at [@]": the sign that is spoken, not a remark
_FEWEST = 100  # every language has about 500; far fewer means a file of another form


@dataclass(frozen=True)
class Prompt:
    """One line of a transcript. `text` is empty where the line has none."""

    id: str
    text: str

    @property
    def family(self) -> str:
        """What the prompt belongs to: its folder, or what stands before the first hyphen ("vm", "conf")."""
        head, slash, _ = self.id.partition("/")
        if slash:
            return head
        first, hyphen, _ = self.id.partition("-")
        return first if hyphen else "single"


def parse(transcript: str, lang: str) -> list[Prompt]:
    """The prompts of one transcript file's text.

    Left out: comments (`;`), tones, and lines with a remark in any brackets ("[ascending tones]",
    "(10 seconds of silence)", "IAX (note: ...)"), where what is spoken cannot be told from the text. A byte
    order mark is skipped, an id repeated in front of its text is dropped, digits are spelt out. Of two
    lines with the same id the first counts.
    """
    prompts: dict[str, Prompt] = {}
    for line in transcript.lstrip("\ufeff").splitlines():
        if not line.strip() or line.lstrip().startswith(";"):
            continue
        prompt_id, colon, text = line.partition(":")
        prompt_id = prompt_id.strip()
        if not colon or not prompt_id or " " in prompt_id or prompt_id in TONES:
            continue
        text = _SYMBOL.sub(" ", text).strip().removeprefix(f"{prompt_id}:")
        if any(mark in text for mark in "[]()<>"):
            continue
        prompts.setdefault(prompt_id, Prompt(prompt_id, spell_digits(" ".join(text.split()), lang)))
    return list(prompts.values())


def spell_digits(text: str, lang: str) -> str:
    """Each digit as a word of the language: "H.323" -> "H. three two three"."""
    words = DIGITS[lang]
    spelt = re.sub(r"[0-9]", lambda digit: f" {words[int(digit.group())]} ", text)
    spelt = re.sub(r"\s+([.,;:!?])", r"\1", spelt)
    return " ".join(spelt.split()) if spelt != text else text


def read_transcript(share: Path, lang: str) -> list[Prompt]:
    """Read a language's transcript below the unpacked packages' `usr/share`.

    Raises:
        JobError: the file is missing, or is not of the form this reads.
    """
    path = share / "doc" / f"asterisk-core-sounds-{lang}" / f"core-sounds-{lang}.txt.gz"
    try:
        text = gzip.decompress(path.read_bytes()).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise JobError(f"{path} is missing: run `pipelines demo fetch` to get the speech") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise JobError(f"{path} cannot be read ({error}): remove it and run `pipelines demo fetch`") from error
    prompts = parse(text, lang)
    if len(prompts) < _FEWEST:
        raise JobError(
            f"{path} holds {len(prompts)} prompts and about 500 were expected: this version of the package "
            "has another form; install version 1.6.1-1"
        )
    return prompts


def rows(
    share: Path, languages: Sequence[str], *, console: Console | None = None, threads: int | None = None
) -> list[manifest.Row]:
    """The manifest's rows, with labels lang, voice, speaker, family, prompt and split.

    `audio_filepath` is `audio/VOICE/ID.g722`, for a link `audio` beside the manifest. A prompt without a
    recording is left out, and a recording without text too, unless the recording is empty: such a row stays,
    as real corpora have them and extraction must cope.
    """
    unknown = [lang for lang in languages if lang not in VOICES]
    if unknown:
        raise UsageError(f"no prompts in {', '.join(unknown)}: choose from {', '.join(VOICES)}")
    sounds = share / "asterisk" / "sounds"
    found: list[tuple[str, Prompt, Path]] = []
    for lang in languages:
        for prompt in read_transcript(share, lang):
            path = sounds / VOICES[lang] / f"{prompt.id}.g722"
            if path.is_file() and (prompt.text or path.stat().st_size == 0):
                found.append((lang, prompt, path))
    if not found:
        raise JobError(f"no recordings below {sounds}: run `pipelines demo fetch`")
    seconds = durations([path for _, _, path in found], console=console, threads=threads)
    splits = split_rows([prompt.id for _, prompt, _ in found], [prompt.text for _, prompt, _ in found])
    return [
        manifest.Row(
            id=f"{lang}/{prompt.id}",
            audio_filepath=f"audio/{VOICES[lang]}/{prompt.id}.g722",
            duration=duration,
            text=prompt.text,
            labels={
                "lang": lang,
                "voice": VOICES[lang],
                "speaker": VOICES[lang].rpartition("_")[2],
                "family": prompt.family,
                "prompt": prompt.id,
                "split": split,
            },
        )
        for (lang, prompt, _), duration, split in zip(found, seconds, splits, strict=True)
    ]


def durations(paths: Sequence[Path], *, console: Console | None = None, threads: int | None = None) -> list[float]:
    """Seconds of each recording, in order; 0.0 for one that cannot be decoded (extraction will say why)."""

    def seconds(path: Path) -> float:
        try:
            info = audio.probe(path)
        except AudioError:
            return 0.0
        return info.samples / info.sample_rate

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=console or Console(stderr=True)) as progress,
        ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool,
    ):
        return list(progress.track(pool.map(seconds, paths), total=len(paths), description="durations"))


def link_audio(target: Path, link: Path) -> None:
    """Point `link` beside a manifest at the recordings, so that it holds no path of this machine."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink():
        link.unlink()
    elif link.exists():
        raise JobError(f"{link} is in the way: a link to the recordings belongs there, move it elsewhere")
    link.symlink_to(target.resolve(), target_is_directory=True)
