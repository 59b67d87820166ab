"""Spoken answers against the reference, at every seam from the talker's prompt to the wave."""

import numpy as np
import pytest

from ms_omni.generation import frames as frame_loop
from ms_omni.generation import speech
from tests.reference.cases import Case
from tests.reference.record_columns import columns
from tests.reference.store import DATA, Reference

WAVE_TOLERANCE = 2e-3
EARLY = "batch+early_text"
KEYS = sorted(
    {note.split("/")[0] for path in DATA.glob("*_speech.npz") for note in Reference(path).notes if "/frames" in note}
    - {EARLY}
)


class Spoken:
    """One spoken answer and what passed the seams: prompt, rows and logits of each step, codes of each frame."""

    def __init__(self, model, case, arguments, config, monkeypatch):
        self.frames, self.rows, self.logits, self.prompt = [], [], [], None
        build_prompt, codec_frames = frame_loop.build_prompt, speech.codec_frames

        def keep_prompt(*args):
            self.prompt = build_prompt(*args)
            return self.prompt

        def keep_frames(*args):
            for frame in codec_frames(*args):
                self.frames.append(frame)
                yield frame

        monkeypatch.setattr(frame_loop, "build_prompt", keep_prompt)
        monkeypatch.setattr(speech, "codec_frames", keep_frames)
        hooks, talker = [], type(model.talker)
        read = talker.read

        def keep_read(cell, *args):  # the prompt
            output = read(cell, *args)
            self._keep_step(cell, args, output)
            return output

        monkeypatch.setattr(talker, "read", keep_read)
        talker_step = frame_loop.talker_step

        def keep_steps(*args):
            step = talker_step(*args)
            hooks.append(step.register_forward_hook(self._keep_step))
            return step

        monkeypatch.setattr(frame_loop, "talker_step", keep_steps)
        # The reference never says the last token, whatever it is; here only an end token is not said: it is one.
        end = config["im_end_token_id"]
        arguments = {
            "thinker_max_new_tokens": 6,
            "thinker_eos_token_id": end,
            "thinker_forced_eos_token_id": end,
            **arguments,
        }
        try:
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
        finally:
            for hook in hooks:
                hook.remove()
        self.audio = [audio.reshape(-1)] if len(case.inputs["input_ids"]) == 1 else audio

    def _keep_step(self, _, inputs, output):
        self.rows.append(inputs[0].asnumpy()[:, -1].copy())
        self.logits.append(output[0].asnumpy()[:, -1].copy())


@pytest.fixture(params=KEYS)
def key(request, speech_values):
    if f"{request.param}/frames" not in speech_values.notes:
        pytest.skip("not recorded for this geometry")
    return request.param


@pytest.fixture
def spoken(model, speech_values, build, config, key, monkeypatch):
    return Spoken(model, build(speech_values, key), speech_values.notes[f"{key}/arguments"], config, monkeypatch)


def test_speech(spoken, speech_values, config, key, close):
    check_prompt(spoken.prompt, speech_values, key, close)
    np.testing.assert_array_equal(spoken.ids[:, :-1], speech_values[f"{key}/ids"][:, :-1])
    for row, count in enumerate(speech_values.notes[f"{key}/frames"]):
        check_steps(spoken, speech_values, key, row, count, close)
        expected = speech_values[f"{key}/codes/{row}"].T
        np.testing.assert_array_equal(codes_of(spoken, row).reshape(-1, expected.shape[1]), expected)
        check_wave(spoken.audio[row], speech_values, key, row, close)


def test_rows_whose_text_ends_early(model, speech_values, build, config, close, monkeypatch):
    """Each row of a batch is spoken as it would be alone: its end token is not said, tts_eos follows its last text.

    In a batch the reference also says the end token of the rows that end before the longest one (it was fed to the
    thinker while the others went on), although alone it never does; up to that row of text both agree.
    """
    if f"{EARLY}/frames" not in speech_values.notes:
        pytest.skip("not recorded for this geometry: its rows repeat one token and cannot end early")
    case, arguments = build(speech_values, EARLY), speech_values.notes[f"{EARLY}/arguments"]
    spoken = Spoken(model, case, arguments, config, monkeypatch)
    monkeypatch.undo()
    check_prompt(spoken.prompt, speech_values, EARLY, close)
    width = case.inputs["input_ids"].shape[1]
    np.testing.assert_array_equal(spoken.ids[:, :-1], speech_values[f"{EARLY}/ids"][:, :-1])
    longest = speech_values.notes[f"{EARLY}/frames"][0]
    check_steps(spoken, speech_values, EARLY, 0, longest, close)
    row = 1
    end = int(np.flatnonzero(np.isin(spoken.ids[row, width:], arguments["thinker_eos_token_id"]))[0])
    np.testing.assert_array_equal(codes_of(spoken, row)[:end], speech_values[f"{EARLY}/codes/{row}"].T[:end])
    alone = Spoken(model, single(case, row), arguments, config, monkeypatch)
    np.testing.assert_array_equal(codes_of(spoken, row), codes_of(alone, 0))
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


def codes_of(spoken, row):
    """Codes [frames, groups] of one row up to its end."""
    return np.array([frame.codes[row] for frame in spoken.frames if frame.active[row]])


def check_prompt(prompt, values, key, close):
    """The rows that the talker reads, without padding, and their three-dimensional positions."""
    np.testing.assert_array_equal(prompt.valid, values[f"{key}/prompt_mask"] == 1)
    close(values, f"{key}/prompt", prompt.rows.asnumpy()[prompt.valid], "speech: talker prompt")
    expected = values[f"{key}/positions"]
    np.testing.assert_allclose(np.asarray(prompt.positions)[:, prompt.valid], expected, rtol=1e-6)


def check_steps(spoken, values, key, row, count, close):
    """Text rows are handed over one per frame: the next text token, tts_eos once, then tts_pad."""
    rows = np.stack(spoken.rows[1:], axis=1)[row, :count] if count else np.zeros((0, spoken.rows[0].shape[-1]))
    close(values, f"{key}/step_rows/{row}", rows, "speech: rows of each step")
    logits = np.stack(spoken.logits, axis=1)[row, : count + 1]
    close(values, f"{key}/logits/{row}", logits[:, columns(logits.shape[-1])], "speech: talker logits of each step")
    positions = spoken.prompt.following[row] + np.arange(count)
    expected = values[f"{key}/step_positions/{row}"]
    np.testing.assert_allclose(np.broadcast_to(positions, expected.shape), expected, rtol=1e-6)


def check_wave(wave, values, key, row, close):
    close(values, f"{key}/wave_exact/{row}", wave, "speech: wave", relative=WAVE_TOLERANCE)
    np.testing.assert_allclose(wave, values[f"{key}/wave/{row}"].astype(np.float32), rtol=0, atol=WAVE_TOLERANCE)
