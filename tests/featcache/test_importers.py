from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from featcache.audio import load, samples_of
from featcache.errors import ManifestError
from featcache.importers import commonvoice, folder, kaldi, lhotse, librispeech
from featcache.importers._common import label_names
from featcache.manifest import Row, read, relative, write


def record(path: Path, seconds: float, rate: int = 16000, channels: int = 1) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(round(seconds * 1000)).uniform(-0.1, 0.1, (round(seconds * rate), channels))
    soundfile.write(path, samples, rate)
    return str(path)


def refusal(importer: Callable[..., list[Row]], source: Path) -> str:
    with pytest.raises(ManifestError) as caught:
        importer(source)
    message = str(caught.value)
    assert "\n" not in message and str(source) in message
    return message


def usable(rows: list[Row], folder: Path) -> None:
    """Rows survive a manifest, and each promises the length that its audio has."""
    path = folder / "manifest.jsonl"
    write(path, relative(rows, path))
    back = read(path)
    assert [row.id for row in back] == [row.id for row in rows]
    assert not any(Path(row.audio_filepath).is_absolute() for row in back)
    for row in back:
        if row.duration:
            part = {"offset": row.offset, "duration": row.duration} if row.is_part else {}
            pcm = load(folder / row.audio_filepath, **part)
            assert abs(len(pcm) - samples_of(row.duration)) <= 1


def libri(root: Path) -> None:
    for subset, speaker, chapter, rate in (("dev-clean", "84", "121", 16000), ("train-other-500", "20", "7", 22050)):
        folder = root / subset / speaker / chapter
        for i in range(2):
            record(folder / f"{speaker}-{chapter}-000{i}.flac", 0.3 + 0.123 * i, rate)
        lines = [f"{speaker}-{chapter}-000{i} HELLO WORLD {i}" for i in range(2)]
        (folder / f"{speaker}-{chapter}.trans.txt").write_text("\n".join(lines) + "\n")


def test_librispeech(tmp_path: Path) -> None:
    libri(tmp_path / "LibriSpeech")
    rows = librispeech(tmp_path)
    assert [row.id for row in rows] == ["84-121-0000", "84-121-0001", "20-7-0000", "20-7-0001"]
    assert rows[1].text == "HELLO WORLD 1" and rows[1].duration == pytest.approx(0.423)
    assert rows[1].labels == {"speaker": "84", "chapter": "121", "subset": "dev-clean", "split": "dev"}
    assert rows[2].labels["subset"] == "train-other-500" and rows[2].labels["split"] == "train"
    assert not any(row.is_part for row in rows)
    usable(rows, tmp_path)


def test_librispeech_from_any_height_of_the_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    libri(tmp_path)
    whole = librispeech(tmp_path)
    monkeypatch.chdir(tmp_path / "dev-clean" / "84" / "121")
    assert librispeech(".") == whole[:2]


def test_librispeech_follows_links_to_folders(tmp_path: Path) -> None:
    libri(tmp_path / "disk")
    root = tmp_path / "LibriSpeech"
    root.mkdir()
    (tmp_path / "disk/dev-clean").rename(root / "dev-clean")
    (root / "train-other-500").symlink_to(tmp_path / "disk/train-other-500")
    rows = librispeech(root)
    assert [row.id for row in rows] == ["84-121-0000", "84-121-0001", "20-7-0000", "20-7-0001"]
    assert rows[2].labels == {"speaker": "20", "chapter": "7", "subset": "train-other-500", "split": "train"}
    assert rows[2].audio_filepath == str(root / "train-other-500/20/7/20-7-0000.flac") and rows[2].duration > 0
    # A loop, and second names of what is there already.
    (root / "dev-clean/84/loop").symlink_to(root)
    (root / "a-link").symlink_to(root / "dev-clean")
    (root / "z-link").symlink_to(tmp_path / "disk/train-other-500")
    assert librispeech(root) == rows
    (tmp_path / "short").symlink_to(root)
    assert [row.id for row in librispeech(tmp_path / "short")] == [row.id for row in rows]


def test_unreadable_recordings_stay_with_a_duration_of_zero(tmp_path: Path) -> None:
    libri(tmp_path)
    (tmp_path / "dev-clean/84/121/84-121-0000.flac").unlink()
    (tmp_path / "dev-clean/84/121/84-121-0001.flac").write_bytes(b"")
    rows = librispeech(tmp_path)
    assert [row.duration > 0 for row in rows] == [False, False, True, True]
    usable(rows, tmp_path)


def test_librispeech_refuses(tmp_path: Path) -> None:
    assert "trans.txt" in refusal(librispeech, tmp_path)
    libri(tmp_path)
    with (tmp_path / "dev-clean/84/121/84-121.trans.txt").open("ab") as file:
        file.write("84-121-0002 CAFÉ\n".encode("latin-1"))
    assert "line 3" in refusal(librispeech, tmp_path) and "UTF-8" in refusal(librispeech, tmp_path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A Kaldi data directory of two recordings and three segments."""
    folder = tmp_path / "data"
    folder.mkdir()
    one, two = record(tmp_path / "wav/1.wav", 4.0), record(tmp_path / "wav/two 2.wav", 3.0, 44100, 2)
    (folder / "wav.scp").write_text(f"rec1 {one}\nrec2\t{two}\n")
    (folder / "segments").write_text("a-1 rec1 0.00 1.10\na-2 rec1 1.1 3.4\nb-1 rec2 0.5 -1\n")
    (folder / "text").write_text("a-1 ciao a  tutti\na-2 è vero\nb-1\n")
    (folder / "utt2spk").write_text("a-1 a\na-2 a\nb-1 b\n")
    (folder / "spk2gender").write_text("a f\n")
    return folder


def test_kaldi_with_segments(tmp_path: Path, data: Path) -> None:
    rows = kaldi(data)
    assert [(row.id, row.offset, row.duration) for row in rows] == [
        ("a-1", 0.0, 1.1),
        ("a-2", 1.1, 2.3),
        ("b-1", 0.5, 2.5),
    ]
    assert all(row.is_part for row in rows)
    assert [row.text for row in rows] == ["ciao a  tutti", "è vero", ""]
    assert [row.labels for row in rows] == [
        {"speaker": "a", "gender": "f"},
        {"speaker": "a", "gender": "f"},
        {"speaker": "b", "gender": None},
    ]
    usable(rows, tmp_path)


def test_kaldi_needs_wav_scp_only(tmp_path: Path, data: Path) -> None:
    for name in ("segments", "text", "utt2spk", "spk2gender"):
        (data / name).unlink()
    rows = kaldi(data)
    assert [(row.id, row.duration, row.text, row.labels) for row in rows] == [
        ("rec1", 4.0, None, {}),
        ("rec2", 3.0, None, {}),
    ]
    assert not any(row.is_part for row in rows)
    usable(rows, tmp_path)


def test_kaldi_segments_at_the_end(tmp_path: Path, data: Path) -> None:
    (data / "segments").write_text("a-1 rec1 3 4.4\na-2 rec1 3 5.0\nb-1 rec2 1 2\n")
    durations = [row.duration for row in kaldi(data)]
    # Half a second too much is cut, as extract-segments does; more stays, and extraction refuses it.
    assert durations == [1.0, 2.0, 1.0]


def test_kaldi_relative_paths(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (data / "wav.scp").write_text("rec1 wav/1.wav\nrec2 local.wav\n")
    record(data / "local.wav", 3.0)
    monkeypatch.chdir(tmp_path)
    assert [row.audio_filepath for row in kaldi("data")] == [
        str(tmp_path / "wav/1.wav"),
        str(tmp_path / "wav/1.wav"),
        str(data / "local.wav"),
    ]


@pytest.mark.parametrize(
    ("file", "content", "named", "hint"),
    [
        ("wav.scp", "rec1 sph2pipe -f wav a.sph |\n", "'rec1'", "command"),
        ("wav.scp", "rec1 raw.ark:1234\n", "'rec1'", "archive"),
        ("wav.scp", "rec1\n", "'rec1'", "no file"),
        ("wav.scp", "rec1 a.wav\nrec1 b.wav\n", "line 2", "twice"),
        ("wav.scp", "", "wav.scp", "empty"),
        ("segments", "a-1 rec1 0\n", "line 1", "UTTERANCE RECORDING START END"),
        ("segments", "a-1 rec1 0 1\na-2 rec9 0 1\n", "line 2", "'rec9'"),
        ("segments", "a-1 rec1 2 1\n", "line 1", "time range"),
        ("segments", "a-1 rec1 zero 1\n", "line 1", "'zero'"),
        ("segments", "a-1 rec1 0 nan\n", "line 1", "'nan'"),
        ("segments", "a-1 rec1 0 1\na-1 rec1 1 2\n", "line 2", "twice"),
        ("segments", "a-1 rec2 0 1 1\n", "line 1", "channel"),
        ("segments", "a-1 rec1 0 1e9\na-2 rec1 0 1\nb-1 rec2 0 1\n", "'a-1'", "'duration'"),
        ("text", "a-1 x\nz-9 y\n", "line 2", "'z-9'"),
        ("utt2spk", "a-1 a\na-1 b\n", "line 2", "twice"),
    ],
)
def test_kaldi_refuses(data: Path, file: str, content: str, named: str, hint: str) -> None:
    (data / file).write_text(content)
    message = refusal(kaldi, data)
    assert named in message and hint in message


def test_kaldi_files_that_flac_would_decode(tmp_path: Path, data: Path) -> None:
    """The recipe for LibriSpeech writes all recordings so."""
    one = record(tmp_path / "wav" / "a b.flac", 1.0)
    (data / "segments").unlink()
    for name in ("text", "utt2spk", "spk2gender"):
        (data / name).unlink()
    (data / "wav.scp").write_text(f"a flac -c -d -s '{one}' |\nb /usr/bin/flac --decode --stdout '{one}'|\n")
    rows = kaldi(data, split="dev")
    assert [(row.audio_filepath, row.duration, row.labels) for row in rows] == [(one, 1.0, {"split": "dev"})] * 2
    for command in (f"flac -cd --skip=100 '{one}' |", f"flac -cd '{one}' | sox - -r 8000 - |", f"flac -cd '{one} |"):
        (data / "wav.scp").write_text(f"a {command}\n")
        assert "is not run" in refusal(kaldi, data)


def test_folder(tmp_path: Path) -> None:
    place = tmp_path / "my recordings"
    for name in ("top.wav", "ann é/1.flac", "ann é/1.wav", "ann é/deep/你好.ogg", ".hidden/x.wav"):
        record(place / name, 0.5)
    (place / "bad.wav").write_bytes(b"")
    (place / "top.txt").write_bytes("\ufeffHallo,\r\nWelt \r\n".encode())
    (place / "notes.md").write_text("not a recording")
    rows = folder(place)
    assert [(row.id, row.duration, row.text, row.labels["folder"]) for row in rows] == [
        ("ann é/1.flac", 0.5, None, "ann é"),
        ("ann é/1.wav", 0.5, None, "ann é"),
        ("ann é/deep/你好", 0.5, None, "ann é/deep"),
        ("bad", 0.0, None, None),
        ("top", 0.5, "Hallo, Welt", None),
    ]
    usable(rows, place)
    (place / "top.txt").write_bytes(b"\xe9")
    assert "UTF-8" in refusal(folder, place)
    assert "no recordings" in refusal(folder, place / "nothing")


def test_kaldi_refuses_a_folder_without_wav_scp(tmp_path: Path) -> None:
    assert "wav.scp" in refusal(kaldi, tmp_path)


def test_columns_that_mean_the_same_keep_apart() -> None:
    assert label_names(["speaker_id", "speaker", "locale"]) == {
        "speaker_id": "speaker_id", "speaker": "speaker", "locale": "lang",
    }  # fmt: skip
    assert label_names(["client_id", "speaker_id", "client_id"]) == {"client_id": "speaker", "speaker_id": "speaker_id"}


HEADER = "client_id\tpath\tsentence\tup_votes\tage\tgender\taccents\tlocale"


def test_commonvoice(tmp_path: Path) -> None:
    for name in ("cv_it_1", "cv_it_2"):
        record(tmp_path / f"clips/{name}.mp3", 1.5, 32000)
    tsv = tmp_path / "dev.tsv"
    tsv.write_text(
        f'{HEADER}\nf00\tcv_it_1.mp3\tDisse "ciao\t2\tthirties\tfemale\t\tit\nba5\tcv_it_2\t"Sì"\t3\t\t\t\tit\n',
        encoding="utf-8",
    )
    rows = commonvoice(tsv)
    assert [row.id for row in rows] == ["cv_it_1", "cv_it_2"]
    assert [row.text for row in rows] == ['Disse "ciao', '"Sì"']
    assert rows[0].labels == {
        "speaker": "f00",
        "up_votes": "2",
        "age": "thirties",
        "gender": "female",
        "accent": None,
        "lang": "it",
        "split": "dev",
    }
    assert all(row.duration > 1.4 for row in rows)
    usable(rows, tmp_path)
    (tmp_path / "clips").rename(tmp_path / "mp3")
    assert [row.duration for row in commonvoice(tsv, tmp_path / "mp3")] == [row.duration for row in rows]
    assert [row.duration for row in commonvoice(tsv)] == [0.0, 0.0]


def test_commonvoice_columns_named_as_fields_or_as_each_other(tmp_path: Path) -> None:
    tsv = tmp_path / "train.tsv"
    tsv.write_text("path\tsentence\tid\tduration\tlocale\tlang\na.mp3\tHi\t7\t1\tit\tIT\n")
    (row,) = commonvoice(tsv)
    assert (row.id, row.duration) == ("a", 0.0)
    assert row.labels == {"locale": "it", "lang": "IT", "split": "train"}


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        ("", "no column"),
        ("a\tb\n1\t2\n", "no column 'path'"),
        (f"{HEADER}\n", "no rows"),
        (f"{HEADER}\nonly\ttwo\n", "line 2: 2 cells for 8 columns"),
        (f"{HEADER}\n\n\nx\t\tHi\t\t\t\t\t\n", "line 4: column 'path'"),
        ("path\tsentence\tsplit\na.mp3\tHi\tx\n", "'split'"),
        ("path\tsentence\tage\tage\na.mp3\tHi\tx\tx\n", "'age'"),
    ],
)
def test_commonvoice_refuses(tmp_path: Path, content: str, hint: str) -> None:
    tsv = tmp_path / "train.tsv"
    tsv.write_text(content)
    assert hint in refusal(commonvoice, tsv)


class TestLhotse:
    @pytest.fixture(autouse=True)
    def _needs_lhotse(self) -> None:
        pytest.importorskip("lhotse")

    @pytest.fixture
    def recording(self, tmp_path: Path) -> Any:
        from lhotse import Recording

        return Recording.from_file(record(tmp_path / "wav/r.flac", 5.0, 22050), recording_id="r")

    def save(self, folder: Path, cuts: list[Any]) -> Path:
        path = folder / "cuts.jsonl.gz"
        with gzip.open(path, "wt", encoding="utf-8") as file:
            file.writelines(json.dumps(cut.to_dict()) + "\n" for cut in cuts)
        return path

    def test_cuts(self, tmp_path: Path, recording: Any) -> None:
        from lhotse import SupervisionSegment as Said

        said = [
            Said("s2", "r", 2.0, 1.0, text="mondo", language="it", speaker="x", gender="f"),
            Said("s1", "r", 0.5, 1.0, text="ciao", language="it", speaker="y", gender="f", custom={"take": 3}),
        ]
        whole = recording.to_cut()
        whole.supervisions = said
        whole.custom = {"snr": 12.5, "split": "dev", "vector": [1, 2]}
        first = whole.truncate(offset=0.0, duration=1.75)
        first.id = "first"
        later = whole.truncate(offset=1.8, duration=1.3)
        later.id = "later"
        rows = lhotse(self.save(tmp_path, [whole, first, later]))
        assert [row.id for row in rows] == [whole.id, "first", "later"]
        assert [row.is_part for row in rows] == [False, True, True]
        assert [(row.offset, row.duration) for row in rows] == [
            (0.0, 5.0),
            (0.0, pytest.approx(1.75, abs=1e-4)),  # lhotse's times are whole native samples
            (pytest.approx(1.8), pytest.approx(1.3)),
        ]
        assert [row.text for row in rows] == ["ciao mondo", "ciao", "mondo"]
        assert rows[0].labels == {"lang": "it", "gender": "f", "snr": 12.5, "split": "dev", "take": 3}
        assert rows[2].labels["speaker"] == "x"
        usable(rows, tmp_path)

    def test_plain_jsonl_and_no_supervision(self, tmp_path: Path, recording: Any) -> None:
        path = tmp_path / "cuts.jsonl"
        path.write_text(json.dumps(recording.to_cut().to_dict()) + "\n")
        (row,) = lhotse(path)
        assert row.text is None and row.labels == {} and row.duration == 5.0

    def test_custom_fields_that_are_no_labels(self, tmp_path: Path, recording: Any) -> None:
        cut = recording.to_cut()
        cut.custom = {"duration": 9.0, "text": "x", "snr": float("nan"), "take": 3, "note": None}
        (row,) = lhotse(self.save(tmp_path, [cut]))
        assert row.duration == 5.0 and row.text is None and row.labels == {"take": 3}

    def test_cuts_that_no_file_holds(self, tmp_path: Path, recording: Any) -> None:
        from lhotse import Recording

        cut = recording.to_cut()
        stereo = Recording.from_file(record(tmp_path / "wav/st.wav", 1.0, 16000, 2), recording_id="st")
        one = stereo.to_cut()
        one = one.to_mono()[0] if hasattr(one, "to_mono") else one
        remote = recording.to_cut()
        remote.recording.sources[0].type = "command"
        for wrong, hint in (
            (cut.pad(duration=7.0), "MixedCut"),
            (Recording.from_file(tmp_path / "wav/r.flac").to_cut().perturb_speed(1.1), "transforms"),
            (one, "channel"),
            (remote, "command"),
        ):
            assert hint in refusal(lhotse, self.save(tmp_path, [wrong]))
        assert lhotse(self.save(tmp_path, [stereo.to_cut()]))[0].duration == 1.0

    def test_not_a_cut_set(self, tmp_path: Path) -> None:
        path = tmp_path / "cuts.jsonl"
        assert "no file" in refusal(lhotse, path)
        for content in ("", "nonsense\n", '{"id": 1}\n', "[1]\n"):
            path.write_text(content)
            assert "CutSet" in refusal(lhotse, path)
        (tmp_path / "cuts.jsonl.gz").write_bytes(b"not gzip")
        assert "CutSet" in refusal(lhotse, tmp_path / "cuts.jsonl.gz")


def test_without_lhotse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cuts.jsonl"
    path.write_text("{}\n")
    monkeypatch.setitem(sys.modules, "lhotse", None)
    with pytest.raises(ManifestError, match="pip install"):
        lhotse(path)
