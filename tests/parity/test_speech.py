"""Spoken answers against the reference, at every seam from the talker's prompt to the wave."""

import numpy as np
import pytest

from tests.reference.cases import Case
from tests.reference.record_columns import columns
from tests.reference.store import DATA, Reference
from tests.voices import codes_of, observed_speech

WAVE_TOLERANCE = 2e-3
EARLY = "batch+early_text"
KEYS = sorted(
    {note.split("/")[0] for path in DATA.glob("*_speech.npz") for note in Reference(path).notes if "/frames" in note}
    - {EARLY}
)


class Spoken:
    """One spoken answer, and the voice of each of its rows: prompt, rows and logits of each step, codes of each frame."""

    def __init__(self, model, case, arguments, config):
        # The reference never says the last token, whatever it is; here only an end token is not said: it is one.
        end = config["im_end_token_id"]
        arguments = {
            "thinker_max_new_tokens": 6,
            "thinker_eos_token_id": end,
            "thinker_forced_eos_token_id": end,
            **arguments,
        }
        with observed_speech() as self.voices:
            self.ids, audio = model.generate(
                **case.inputs,
                speaker="Ethan",
                use_audio_in_video=case.use_audio_in_video,
                thinker_do_sample=False,
                thinker_pad_token_id=config["im_end_token_id"],
                talker_max_new_tokens=11,
                talker_do_sample=False,
                **arguments,
            )
        self.audio = [audio.reshape(-1)] if len(case.inputs["input_ids"]) == 1 else audio


@pytest.fixture(params=KEYS)
def key(request, speech_values):
    if f"{request.param}/frames" not in speech_values.notes:
        pytest.skip("not recorded for this geometry")
    return request.param


@pytest.fixture
def spoken(model, speech_values, build, config, key):
    return Spoken(model, build(speech_values, key), speech_values.notes[f"{key}/arguments"], config)


def test_speech(spoken, speech_values, config, key, close):
    check_prompts(spoken.voices, speech_values, key, close)
    np.testing.assert_array_equal(spoken.ids[:, :-1], speech_values[f"{key}/ids"][:, :-1])
    for row, count in enumerate(speech_values.notes[f"{key}/frames"]):
        check_steps(spoken.voices[row], speech_values, key, row, count, close)
        expected = speech_values[f"{key}/codes/{row}"].T
        np.testing.assert_array_equal(codes_of(spoken.voices[row]).reshape(-1, expected.shape[1]), expected)
        check_wave(spoken.audio[row], speech_values, key, row, close)


def test_rows_whose_text_ends_early(model, speech_values, build, config, close):
    """Each row of a batch is spoken as it would be alone: its end token is not said, tts_eos follows its last text.

    In a batch the reference also says the end token of the rows that end before the longest one (it was fed to the
    thinker while the others went on), although alone it never does; up to that row of text both agree.
    """
    if f"{EARLY}/frames" not in speech_values.notes:
        pytest.skip("not recorded for this geometry: its rows repeat one token and cannot end early")
    case, arguments = build(speech_values, EARLY), speech_values.notes[f"{EARLY}/arguments"]
    spoken = Spoken(model, case, arguments, config)
    check_prompts(spoken.voices, speech_values, EARLY, close)
    width = case.inputs["input_ids"].shape[1]
    np.testing.assert_array_equal(spoken.ids[:, :-1], speech_values[f"{EARLY}/ids"][:, :-1])
    longest = speech_values.notes[f"{EARLY}/frames"][0]
    check_steps(spoken.voices[0], speech_values, EARLY, 0, longest, close)
    row = 1
    end = int(np.flatnonzero(np.isin(spoken.ids[row, width:], arguments["thinker_eos_token_id"]))[0])
    np.testing.assert_array_equal(codes_of(spoken.voices[row])[:end], speech_values[f"{EARLY}/codes/{row}"].T[:end])
    alone = Spoken(model, single(case, row), arguments, config)
    np.testing.assert_array_equal(codes_of(spoken.voices[row]), codes_of(alone.voices[0]))
    np.testing.assert_allclose(spoken.audio[row], alone.audio[0], rtol=0, atol=1e-4)


def single(case, row):
    """Row `row` of the case "batch" (text; image and audio; video) without its padding, as a case of its own."""
    mask = case.inputs["attention_mask"][row] == 1
    wanted = [
        (),
        ("pixel_values", "image_grid_thw", "input_features", "feature_attention_mask"),
        ("pixel_values_videos", "video_grid_thw", "video_second_per_grid"),
    ][row]
    inputs = {name: case.inputs[name] for name in wanted}
    ids = {name: case.inputs[name][row : row + 1, mask] for name in ("input_ids", "attention_mask")}
    return Case(f"{case.name}/{row}", ids | inputs, case.use_audio_in_video)


def check_prompts(voices, values, key, close):
    """The rows that the talker reads of each conversation, and their three-dimensional positions."""
    assert [len(voice.rows) for voice in voices] == values[f"{key}/prompt_mask"].sum(axis=1).tolist()
    rows, positions = [voice.rows.asnumpy() for voice in voices], [voice.context.positions for voice in voices]
    close(values, f"{key}/prompt", np.concatenate(rows), "speech: talker prompt")
    np.testing.assert_allclose(np.concatenate(positions, axis=1), values[f"{key}/positions"], rtol=1e-6)


def check_steps(voice, values, key, row, count, close):
    """Text rows are handed over one per frame: the next text token, tts_eos once, then tts_pad."""
    rows = [place.tensor.asnumpy()[place.row, 0] for place in voice.inputs[1 : count + 1]]
    rows = np.stack(rows) if count else np.zeros((0, voice.rows.shape[1]))
    close(values, f"{key}/step_rows/{row}", rows, "speech: rows of each step")
    logits = np.stack(voice.logits)[: count + 1]
    close(values, f"{key}/logits/{row}", logits[:, columns(logits.shape[-1])], "speech: talker logits of each step")
    expected = values[f"{key}/step_positions/{row}"]
    np.testing.assert_allclose(
        np.broadcast_to(voice.context.following + np.arange(count), expected.shape), expected, rtol=1e-6
    )


def check_wave(wave, values, key, row, close):
    close(values, f"{key}/wave_exact/{row}", wave, "speech: wave", relative=WAVE_TOLERANCE)
    np.testing.assert_allclose(wave, values[f"{key}/wave/{row}"].astype(np.float32), rtol=0, atol=WAVE_TOLERANCE)
