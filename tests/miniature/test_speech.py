"""What the miniature says: while it writes, in every voice, and understood by itself."""

import numpy as np
import pytest
import soundfile

from examples.miniature.held_out import Question
from ms_omni import cli
from ms_omni.outputs import AudioChunk, StreamEnd, TextDelta

SPEAKERS = ("ethan", "chelsie")
FRAME = 1920  # samples
MAX_FRAMES = 200
MAX_TAIL_S = 1.5


def events_of(model, processor, prompt, **options):
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": prompt}]], tokenize=True, return_dict=True, add_generation_prompt=True
    )
    return inputs, list(model.stream(**inputs, talker_max_new_tokens=MAX_FRAMES, seed=3, **options))


def test_it_speaks_while_it_writes(model, processor):
    """Sound comes before the text is complete, and all chunks together are what `generate` returns."""
    prompt = "Say a purple triangle and 9274."
    inputs, events = events_of(model, processor, prompt, speaker="chelsie", tokenizer=processor.tokenizer)
    kinds = [type(event) for event in events]
    last_text = max(index for index, kind in enumerate(kinds) if kind is TextDelta and events[index].active[0])
    assert kinds.index(AudioChunk) < last_text and kinds[-1] is StreamEnd
    assert "".join(event.text[0] for event in events if isinstance(event, TextDelta)).strip() == "a purple triangle and 9274"
    ids, audio = model.generate(**inputs, speaker="chelsie", seed=3, talker_max_new_tokens=MAX_FRAMES)
    chunks = np.concatenate([event.pcm[0, : event.samples[0]] for event in events if isinstance(event, AudioChunk)])
    np.testing.assert_array_equal(chunks, np.asarray(audio).reshape(-1))
    np.testing.assert_array_equal(events[-1].sequences, ids)


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("digits", ["7", "402", "5813"])
def test_say_is_understood_by_its_own_ears(model, processor, tmp_path, ask, speaker, digits, monkeypatch):
    """`ms-omni say`'s file, heard again: the same digits; it stopped by itself, and silence at its end is short."""
    target = tmp_path / "said.wav"
    monkeypatch.setattr(type(model), "from_pretrained", lambda *_, **__: model)  # loaded already
    options = ["--model", model.folder, "--speaker", speaker, "--speech", target, "--talker-max-new-tokens", MAX_FRAMES]
    assert cli.main(["say", *map(str, options), "--seed", "1", digits]) == 0
    sound, rate_hz = soundfile.read(target, dtype="float32")
    loud = np.flatnonzero(np.abs(sound) > 0.02 * np.abs(sound).max())
    assert len(sound) < (MAX_FRAMES - 2) * FRAME and (len(sound) - loud[-1]) / rate_hz <= MAX_TAIL_S
    content = [{"type": "audio", "audio": str(target)}, {"type": "text", "text": "What number do you hear?"}]
    assert ask([Question("", [{"role": "user", "content": content}], digits, False)]) == [digits]


def test_a_spoken_batch(model, processor):
    """Rows of different lengths speak together; each ends by itself."""
    prompts = ["What is 3 + 4?", "Say an orange star and 66.", "What is the capital of France?"]
    inputs = processor.apply_chat_template(
        [[{"role": "user", "content": prompt}] for prompt in prompts],
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
    )
    ids, waves = model.generate(**inputs, speaker="ethan", talker_max_new_tokens=MAX_FRAMES, seed=5)
    texts = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text.strip() for text in texts] == ["7", "an orange star and 66", "I do not know"]
    lengths = [len(wave) for wave in waves]
    assert lengths[0] < lengths[2] < (MAX_FRAMES - 2) * FRAME and lengths[0] < lengths[1]
