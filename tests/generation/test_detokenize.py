"""Text as it comes: pieces join to the whole, and no character is shown before its last byte."""

from types import SimpleNamespace

import numpy as np

from ms_omni.engine.sequence import MAX_IDS, IncrementalDecoder
from ms_omni.outputs import TextDelta

TEXT = "Füße, 你好\n\nand 🎵 then\n"


def test_pieces_join_to_the_text_and_hold_no_half_characters(processor):
    ids = processor.tokenizer(TEXT)["input_ids"]
    decoder = IncrementalDecoder(processor.tokenizer)
    pieces = [decoder.push(token, final=index == len(ids) - 1) for index, token in enumerate(ids)]
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces) and "" in pieces


def test_a_long_line_is_not_decoded_from_its_beginning_on(processor):
    """Wherever it is cut, also within a character."""
    draw = np.random.default_rng(0)
    line = "".join(draw.choice(list("aé你🎵 <9ß好"), 700))
    ids, seen = processor.tokenizer(line)["input_ids"], []
    decode = processor.tokenizer.decode
    decoder = IncrementalDecoder(
        SimpleNamespace(decode=lambda ids, **kwargs: seen.append(len(ids)) or decode(ids, **kwargs))
    )
    assert "".join(decoder.push(token, final=index == len(ids) - 1) for index, token in enumerate(ids)) == line
    assert len(ids) > 700 and max(seen) < MAX_IDS + 8


def test_what_is_held_back_comes_out_at_the_end(processor):
    first = processor.tokenizer("🎵")["input_ids"][0]
    decoder = IncrementalDecoder(processor.tokenizer)
    assert decoder.push(first) == ""
    assert decoder.push(processor.tokenizer.convert_tokens_to_ids("<|im_end|>"), final=True) == "\ufffd"


def test_a_stream_with_a_tokenizer_says_the_text_of_every_row(tiny_model, ask, processor):
    inputs = ask("hi", "how are you")
    events = list(tiny_model.stream(**inputs, return_audio=False, max_new_tokens=6, tokenizer=processor.tokenizer))
    deltas = [event for event in events if isinstance(event, TextDelta)]
    new = events[-1].sequences[:, inputs["input_ids"].shape[1] :]
    expected = processor.batch_decode(new, skip_special_tokens=True)
    assert ["".join(delta.text[row] for delta in deltas) for row in range(2)] == expected
    assert next(tiny_model.stream(**inputs, return_audio=False, max_new_tokens=1)).text is None
