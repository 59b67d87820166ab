"""The WAV file that speech goes to: valid at every moment, and an older file is safe until the end."""

import wave

import numpy as np
import pytest
import soundfile

from ms_omni.commands.speech_output import SpeechOutput
from ms_omni.errors import InputError
from ms_omni.outputs import StreamEnd

TONE = np.linspace(-1, 1, 1000, dtype=np.float32)


def read(path):
    with wave.open(str(path), "rb") as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 24_000)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def end(total_s=0.5):
    return StreamEnd(None, np.array([1]), np.array([1]), 0.1, 0.2, total_s)


def test_a_new_file_is_valid_while_it_is_written(tmp_path):
    path = tmp_path / "new.wav"
    with SpeechOutput(path) as speech:
        assert len(read(path)) == 0
        for count in (1, 2, 3):
            speech.write(TONE)
            assert len(read(path)) == 1000 * count
    assert len(read(path)) == speech.samples == 3000
    assert [item.name for item in tmp_path.iterdir()] == ["new.wav"]


def test_samples_are_rounded_and_limited(tmp_path):
    with SpeechOutput(tmp_path / "x.wav") as speech:
        speech.write(np.array([0, 1, -1, 1.5, -7, 0.5 / 32767 + 1e-6], np.float32))
        speech.write(np.zeros(0, np.float32))
    assert read(tmp_path / "x.wav").tolist() == [0, 32767, -32767, 32767, -32767, 1]


def test_an_older_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "old.wav"
    path.write_bytes(b"what was here before")
    with SpeechOutput(path) as speech:
        speech.write(TONE)
        assert path.read_bytes() == b"what was here before"
        assert len(read(tmp_path / "old.wav.partial")) == 1000
    assert len(read(path)) == 1000
    assert [item.name for item in tmp_path.iterdir()] == ["old.wav"]


@pytest.mark.parametrize(
    "name, kind", [("a.flac", "FLAC"), ("a.mp3", "MP3"), ("a.ogg", "VORBIS"), ("a.opus", "OPUS"), ("A.WAV", "WAV")]
)
def test_the_ending_chooses_the_format(name, kind, tmp_path):
    path = tmp_path / name
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(24_000, dtype=np.float32) / 24_000)
    for _ in ("a new file", "an older file"):
        with SpeechOutput(path) as speech:
            for piece in np.array_split(tone, 7):
                speech.write(piece)
    about = soundfile.info(path)
    assert kind in (about.format, about.subtype) and about.samplerate == 24_000 and about.channels == 1
    heard, _ = soundfile.read(path, dtype="float32")
    assert abs(len(heard) - len(tone)) <= 1152  # a frame of MP3
    loudest = np.abs(np.fft.rfft(heard[:23_000], 24_000)).argmax()
    assert loudest == pytest.approx(440, abs=2)
    assert [item.name for item in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["a.aac", "a", "a.wav.txt", ".wav"])
def test_other_endings_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="expected .wav, .flac, .mp3, .ogg, .opus"):
        SpeechOutput(tmp_path / name)
    assert not list(tmp_path.iterdir())


def interrupted(path, words):
    with pytest.raises(KeyboardInterrupt), SpeechOutput(path) as speech:
        for _ in range(words):
            speech.write(TONE)
        raise KeyboardInterrupt


def test_what_was_said_until_an_interruption_is_kept(tmp_path):
    interrupted(tmp_path / "new.wav", 2)
    assert len(read(tmp_path / "new.wav")) == 2000
    interrupted(tmp_path / "new.wav", 1)
    assert len(read(tmp_path / "new.wav")) == 1000
    assert [item.name for item in tmp_path.iterdir()] == ["new.wav"]


def test_nothing_said_before_a_failure_leaves_the_older_file(tmp_path):
    path = tmp_path / "old.wav"
    path.write_bytes(b"what was here before")
    interrupted(path, 0)
    assert path.read_bytes() == b"what was here before"
    assert [item.name for item in tmp_path.iterdir()] == ["old.wav"]


def test_raw_samples_go_to_standard_output(capsysbinary):
    with SpeechOutput("-") as speech:
        speech.write(TONE[:2])
        speech.write(TONE[-1:])
    out, _ = capsysbinary.readouterr()
    assert np.frombuffer(out, "<i2").tolist() == [-32767, -32701, 32767]
    assert speech.samples == 3


def test_without_a_target_samples_are_only_counted(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SpeechOutput(None) as speech:
        speech.write(TONE)
    speech.report(end())
    assert capsys.readouterr() == ("", "") and not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["missing/out.wav", "."])
def test_a_target_that_cannot_be_written(target, tmp_path):
    with pytest.raises(InputError, match="cannot write speech to .*: it must be a file in a folder that exists"):
        SpeechOutput(tmp_path / target)


def test_report(capsys, tmp_path):
    speech = SpeechOutput(tmp_path / "x.wav")
    assert speech.real_time_factor(end()) is None
    speech.report(end())
    speech.samples = 48_000
    speech.report(end(total_s=1.0))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "nothing was said"
    assert second == f"2.00 s of speech -> {tmp_path / 'x.wav'}; real-time factor 0.5, first sound after 0.20 s"
