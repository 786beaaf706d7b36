"""Importers of data sets that hold their recordings: Hugging Face and WebDataset, made here of real speech."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from featcache.audio import load
from featcache.errors import ManifestError
from featcache.importers import huggingface, webdataset
from featcache.importers.huggingface import _fetched
from featcache.manifest import read, resolve
from tests.helpers import run_cli

PROMPTS = ("activated", "agent-loggedoff", "agent-pass")
TEXTS = ("Activated.", "Agent logged off.", "Please enter your password.")


@pytest.fixture
def recordings(tmp_path: Path, speech_root: Path) -> list[Path]:
    """Three prompts: a FLAC, a WAV and a FLAC at 8 kHz."""
    made = []
    for prompt, suffix, step in zip(PROMPTS, (".flac", ".wav", ".flac"), (1, 1, 2), strict=True):
        pcm = load(speech_root / "asterisk" / "sounds" / "en_US_f_Allison" / f"{prompt}.g722")
        made.append(tmp_path / f"{prompt}{suffix}")
        soundfile.write(made[-1], pcm[::step], 16_000 // step, "PCM_16")
    return made


def hub_folder(root: Path, recordings: list[Path]) -> Path:
    """What one downloads from the hub: Parquet files with the recordings inside, a split each."""
    datasets = pytest.importorskip("datasets")
    (root / "data").mkdir(parents=True)
    for split, rows in (("train", slice(0, 2)), ("test", slice(2, 3))):
        stored = [{"bytes": path.read_bytes(), "path": path.name} for path in recordings[rows]]
        columns = {
            "audio": stored, "sentence": list(TEXTS[rows]), "speaker_id": [7] * len(stored),
            "emotion": [1] * len(stored), "tokens": [[1, 2]] * len(stored),
        }  # fmt: skip
        part = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
        part = part.cast_column("emotion", datasets.ClassLabel(names=["calm", "angry"]))
        part.to_parquet(str(root / "data" / f"{split}-00000-of-00001.parquet"))
    return root


def same_audio(found: Path, recording: Path) -> bool:
    return found.read_bytes() == recording.read_bytes() and np.array_equal(load(found), load(recording))


def test_a_hub_folder_by_the_command_line(tmp_path: Path, recordings: list[Path]) -> None:
    source = hub_folder(tmp_path / "hub", recordings)
    out = tmp_path / "data" / "m.jsonl"
    done = run_cli("manifest", "huggingface", source, "-o", out)
    assert done.status == 0, done.err
    rows = read(out)
    assert [(row.id, row.text) for row in rows] == [
        ("train/000000", TEXTS[0]), ("train/000001", TEXTS[1]), ("test/000000", TEXTS[2]),
    ]  # fmt: skip
    assert rows[2].labels == {"split": "test", "speaker": 7, "emotion": "angry"}
    for row, recording in zip(rows, recordings, strict=True):
        assert same_audio(resolve(row, out), recording)
        assert row.duration == pytest.approx(len(load(recording)) / 16_000, abs=1e-4)
        assert not os.path.isabs(row.audio_filepath)
    assert run_cli("manifest", "check", out, "--measure").out.endswith("0 durations differ\n")


def test_a_data_set_of_save_to_disk(tmp_path: Path, recordings: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"audio": [str(path) for path in recordings], "id": list(PROMPTS), "text": list(TEXTS)}
    part = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
    datasets.DatasetDict({"dev": part}).save_to_disk(str(tmp_path / "saved"))
    rows = huggingface(tmp_path / "saved", tmp_path / "audio")
    assert [(row.id, row.text) for row in rows] == [(f"dev/{p}", t) for p, t in zip(PROMPTS, TEXTS, strict=True)]
    assert all(same_audio(Path(row.audio_filepath), path) for row, path in zip(rows, recordings, strict=True))


def test_what_huggingface_refuses(tmp_path: Path, recordings: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    source = hub_folder(tmp_path / "hub", recordings)
    with pytest.raises(ManifestError, match="no split 'dev': it has train, test"):
        huggingface(source, tmp_path / "audio", split="dev")
    with pytest.raises(ManifestError, match="no column 'words'"):
        huggingface(source, tmp_path / "audio", text="words")
    with pytest.raises(ManifestError, match="is no data set"):
        huggingface(tmp_path / "nothing-here", tmp_path / "audio")
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "mute"))
    with pytest.raises(ManifestError, match="0 audio columns of text"):
        huggingface(tmp_path / "mute", tmp_path / "audio")


def test_an_id_that_is_there_twice(tmp_path: Path, recordings: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    columns = {"audio": [str(path) for path in recordings[:2]], "id": ["one", "one"]}
    datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio()).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ManifestError, match="row 1: the id 'all/one' is there twice"):
        huggingface(tmp_path / "saved", tmp_path / "audio")


def saved(folder: Path, recordings: list[Path], **columns: list[object]) -> Path:
    datasets = pytest.importorskip("datasets")
    part = datasets.Dataset.from_dict({"audio": [str(path) for path in recordings], **columns})
    datasets.DatasetDict({"dev": part.cast_column("audio", datasets.Audio())}).save_to_disk(str(folder))
    return folder


def test_columns_that_are_named_as_fields_or_as_each_other(tmp_path: Path, recordings: list[Path]) -> None:
    two, audio = recordings[:2], tmp_path / "audio"
    source = saved(tmp_path / "a", two, text=["A", "B"], normalized_text=["a", "b"], duration=[9.0, 9.0])
    assert [(row.text, row.labels) for row in huggingface(source, audio, text="normalized_text")] == [
        ("a", {"split": "dev"}), ("b", {"split": "dev"}),
    ]  # fmt: skip
    assert huggingface(source, audio)[0].labels == {"split": "dev", "normalized_text": "a"}
    assert huggingface(source, audio)[0].duration != 9.0
    source = saved(tmp_path / "b", two, speaker_id=[1, 2], speaker=["Ann", "Bob"], split=["dev", None])
    assert [row.labels for row in huggingface(source, audio)] == [
        {"split": "dev", "speaker_id": 1, "speaker": "Ann"}, {"split": "dev", "speaker_id": 2, "speaker": "Bob"},
    ]  # fmt: skip
    # A row has `labels` already, those that it has.
    source = saved(tmp_path / "labels", two, labels=["calm", "angry"])
    assert [row.labels["label"] for row in huggingface(source, audio)] == ["calm", "angry"]
    source = saved(tmp_path / "c", two, split=["dev", "held-out"])
    with pytest.raises(ManifestError, match="row 1: a column 'split' says 'held-out': .* renamed"):
        huggingface(source, audio)


def audiofolder(root: Path, recordings: list[Path]) -> Path:
    """Recordings beside a table, as datasets calls an audiofolder."""
    (root / "train").mkdir(parents=True)
    for path in recordings:
        (root / "train" / path.name).write_bytes(path.read_bytes())
    lines = [f"{path.name},{text}\n" for path, text in zip(recordings, TEXTS, strict=True)]
    (root / "train" / "metadata.csv").write_text("".join(["file_name,text\n", *lines]))
    return root


def test_an_audiofolder_where_it_lies(tmp_path: Path, recordings: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setitem(sys.modules, "torchcodec.encoders", None)  # nothing is decoded, so no decoder is needed
    rows = huggingface(audiofolder(tmp_path / "folder", recordings), tmp_path / "audio")
    assert [(row.text, row.audio_filepath) for row in rows] == [
        (text, str(tmp_path / "folder" / "train" / path.name)) for text, path in zip(TEXTS, recordings, strict=True)
    ]
    assert all(row.duration > 0 for row in rows) and not (tmp_path / "audio").exists()


def test_recordings_inside_a_zip(tmp_path: Path, recordings: list[Path]) -> None:
    folder = audiofolder(tmp_path / "folder", recordings)
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for path in sorted((folder / "train").iterdir()):
            archive.write(path, path.name)
    rows = huggingface(tmp_path / "zipped", tmp_path / "audio")
    assert [(row.id, row.text) for row in rows] == [(f"train/{i:06d}", text) for i, text in enumerate(TEXTS)]
    for row, recording in zip(rows, recordings, strict=True):
        assert same_audio(Path(row.audio_filepath), recording) and row.duration > 0
        assert Path(row.audio_filepath).suffix == recording.suffix


def test_a_recording_at_an_address_that_cannot_be_read(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    address = f"zip://one.wav::{tmp_path}/gone.zip"
    with pytest.raises(ManifestError, match=rf"^split 'dev', row 0: {address} cannot be read \(.*\): unpack") as caught:
        _fetched("split 'dev', row 0", address)
    assert "\n" not in str(caught.value)


def test_a_data_set_that_stops_within(tmp_path: Path, recordings: list[Path]) -> None:
    source = hub_folder(tmp_path / "hub", recordings)
    parquet = source / "data" / "train-00000-of-00001.parquet"
    stored = bytearray(parquet.read_bytes())
    stored[4:100] = b"\xff" * 96  # the header of its first page; the columns are named at its end
    parquet.write_bytes(stored)
    with pytest.raises(ManifestError, match=r"^split 'train' stops datasets \(.*\): download it again"):
        huggingface(source, tmp_path / "audio")


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def test_shards_by_the_command_line(tmp_path: Path, recordings: list[Path]) -> None:
    pytest.importorskip("webdataset")
    facts = json.dumps({"text": TEXTS[1], "speaker_id": "Allison", "words": ["a"], "duration": 99.0})
    shard(
        tmp_path / "wds" / "t-000.tar",
        {
            "en/one.flac": recordings[0].read_bytes(), "en/one.txt": f"{TEXTS[0]}\n".encode(), "en/one.cls": b"3",
            "en/two.wav": recordings[1].read_bytes(), "en/two.json": facts.encode(),
        },
    )  # fmt: skip
    shard(tmp_path / "wds" / "t-001.tar", {"three.flac": recordings[2].read_bytes(), "three.txt": b"drei"})
    out = tmp_path / "data" / "m.jsonl"
    done = run_cli("manifest", "webdataset", f"{tmp_path}/wds/t-{{000..001}}.tar", "-o", out, "--split", "train")
    assert done.status == 0, done.err
    rows = read(out)
    assert [(row.id, row.text) for row in rows] == [("en/one", TEXTS[0]), ("en/two", TEXTS[1]), ("three", "drei")]
    assert [row.labels for row in rows] == [
        {"split": "train", "class": "3"}, {"split": "train", "speaker": "Allison"}, {"split": "train"},
    ]  # fmt: skip
    for row, recording in zip(rows, recordings, strict=True):
        assert same_audio(resolve(row, out), recording)
        assert row.duration == pytest.approx(len(load(recording)) / 16_000, abs=1e-4)
    assert webdataset(tmp_path / "wds", tmp_path / "again")[1].labels == {"speaker": "Allison"}


def test_what_webdataset_refuses(tmp_path: Path, recordings: list[Path]) -> None:
    pytest.importorskip("webdataset")
    flac = recordings[0].read_bytes()
    outside = shard(tmp_path / "a.tar", {"../../evil.flac": flac})
    with pytest.raises(ManifestError, match="leads out of"):
        webdataset(outside, tmp_path / "deep" / "audio")
    assert not (tmp_path.parent / "evil.flac").exists() and not (tmp_path / "evil.flac").exists()
    mute = shard(tmp_path / "b.tar", {"one.txt": b"a"})
    with pytest.raises(ManifestError, match=r"sample 'one': 0 recordings among its members \(txt\)"):
        webdataset(mute, tmp_path / "audio")
    one = {"one.flac": flac}
    shard(tmp_path / "two" / "0.tar", one)
    shard(tmp_path / "two" / "1.tar", one)
    with pytest.raises(ManifestError, match="its key is there twice"):
        webdataset(tmp_path / "two", tmp_path / "audio")
    with pytest.raises(ManifestError, match="is no file"):
        webdataset("pipe:touch evil", tmp_path / "audio")
    (tmp_path / "c.tar").write_bytes(b"no tar at all")
    with pytest.raises(ManifestError, match="is no shard to webdataset|has no samples"):
        webdataset(tmp_path / "c.tar", tmp_path / "audio")


def shards_of_one_length(root: Path) -> tuple[Path, Path]:
    """Two data sets with the same key, whose recordings differ in nothing but their samples."""
    made = []
    for name, level in (("a", 0.1), ("b", 0.2)):
        stored = io.BytesIO()
        soundfile.write(stored, np.full(1600, level), 16_000, "PCM_16", format="WAV")
        made.append(shard(root / f"{name}.tar", {"000000.wav": stored.getvalue(), "000000.txt": name.encode()}))
    return made[0], made[1]


def test_a_second_data_set_does_not_take_the_recordings_of_the_first(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    first, second = shards_of_one_length(tmp_path)
    out, other = tmp_path / "data" / "a.jsonl", tmp_path / "data" / "b.jsonl"
    assert run_cli("manifest", "webdataset", first, "-o", out).status == 0
    kept = resolve(read(out)[0], out).read_bytes()
    refused = run_cli("manifest", "webdataset", second, "-o", other)
    assert refused.status != 0 and not other.exists()
    assert "000000.wav is another recording: give this data set its own folder with --audio" in refused.err
    assert run_cli("manifest", "webdataset", second, "-o", other, "--audio", tmp_path / "data" / "b").status == 0
    assert resolve(read(out)[0], out).read_bytes() == kept != resolve(read(other)[0], other).read_bytes()


def test_a_second_hub_folder_does_not_take_the_recordings_of_the_first(tmp_path: Path, recordings: list[Path]) -> None:
    huggingface(hub_folder(tmp_path / "one", recordings), tmp_path / "audio")
    # The same names and suffixes, other recordings of other lengths.
    other = hub_folder(tmp_path / "two", [recordings[2], recordings[1], recordings[0]])
    with pytest.raises(ManifestError, match="000000.flac is another recording: .* --audio"):
        huggingface(other, tmp_path / "audio")
    assert same_audio(tmp_path / "audio" / "train" / "000000.flac", recordings[0])


def test_an_import_again_and_one_that_was_killed(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    first, _ = shards_of_one_length(tmp_path)
    rows = webdataset(first, tmp_path / "audio")
    written = Path(rows[0].audio_filepath)
    before = written.stat().st_mtime_ns
    assert webdataset(first, tmp_path / "audio") == rows and written.stat().st_mtime_ns == before
    # What a kill leaves: half of a file under the name that it has while it is written.
    written.with_name(f".{written.name}.half").write_bytes(written.read_bytes()[:100])
    written.unlink()
    assert webdataset(first, tmp_path / "audio") == rows and os.listdir(tmp_path / "audio") == [written.name]


def test_samples_whose_columns_mean_the_same(tmp_path: Path, recordings: list[Path]) -> None:
    pytest.importorskip("webdataset")
    flac = recordings[0].read_bytes()
    facts = [{"speaker_id": 7}, {"speaker_id": 7, "speaker": "Ann", "text": "a", "offset": 3}]
    members = {}
    for i, fact in enumerate(facts):
        members |= {f"{i}.flac": flac, f"{i}.json": json.dumps(fact).encode()}
    rows = webdataset(shard(tmp_path / "t.tar", members), tmp_path / "audio")
    # One name for one column in all samples.
    assert [row.labels for row in rows] == [{"speaker_id": 7}, {"speaker_id": 7, "speaker": "Ann"}]
    assert not any(row.is_part for row in rows)
