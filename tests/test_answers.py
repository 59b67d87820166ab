"""An answer without speech is read by scripts for two versions of transformers."""

import pickle

import numpy as np
import pytest

from ms_omni.arrays import HostArray
from ms_omni.outputs import GenerateOutput, TextIds, without_speech

IDS = np.arange(12).reshape(2, 6)


@pytest.fixture(params=[1, 2], ids=["one row", "two rows"])
def ids(request):
    return IDS[: request.param]


@pytest.fixture
def answer(ids):
    return without_speech(TextIds.of(ids))


def test_scripts_of_4_57_unpack_a_pair(answer, ids):
    text_ids, audio = answer
    assert audio is None and np.array_equal(text_ids, ids) and np.array_equal(text_ids[:, 2:], ids[:, 2:])
    (again, _) = answer
    assert again.sequences is again and np.array_equal(again["sequences"], ids)
    for text, none in [answer, answer]:
        assert np.array_equal(text, ids) and none is None
    first, *rest = [answer]
    assert first is answer and not rest


def test_scripts_of_4_57_take_the_first_of_a_pair(answer, ids):
    text_ids = answer[0]
    assert np.array_equal(text_ids[:, 2:], ids[:, 2:]) and np.array_equal(text_ids.sequences, ids)
    assert np.array_equal(text_ids[0, 2:], ids[0, 2:]) and np.array_equal(text_ids[0], ids[0])
    assert np.array_equal(answer[0][0][2:], ids[0, 2:])
    assert np.array_equal(answer["sequences"], ids)


def test_there_is_no_sound_in_the_second_place_unless_there_is_a_second_row(answer, ids):
    assert answer[1] is None if len(ids) == 1 else np.array_equal(answer[1], ids[1])


def test_scripts_of_5_take_ids(answer, ids):
    assert answer.shape == ids.shape and len(answer) == len(ids) and answer.size(1) == 6
    assert np.array_equal(answer[:, 2:], ids[:, 2:]) and np.array_equal(answer.sequences[:, 2:], ids[:, 2:])
    assert answer[0].shape == (6,) and answer[0].tolist() == ids[0].tolist() and len(answer[0]) == 6
    assert answer[0][2:].tolist() == ids[0, 2:].tolist() and answer[0][-1] == ids[0, -1]
    assert [row.tolist() for row in answer] == ids.tolist() == answer.tolist()
    assert [out[len(given) :].tolist() for given, out in zip(ids[:, :2], answer)] == ids[:, 2:].tolist()
    assert [*map(len, answer)] == [6] * len(ids) and len(list(answer)) == len(tuple(answer)) == len(ids)
    assert np.array_equal(answer.cpu().numpy(), ids) and np.array_equal(np.stack([*answer]), ids)


def test_what_is_computed_from_it_is_an_array_like_others(answer):
    for result in (answer + 1, answer == 3, answer[:, 1:], answer.float(), np.concatenate([answer, answer]), answer[0] * 2):
        assert isinstance(result, HostArray)
    for result in (answer + 1, answer[:, 1:], answer == 3):
        assert type(result) is HostArray
    assert np.array_equal(pickle.loads(pickle.dumps(answer)), answer)


def test_an_output_is_its_own_pair(ids):
    output = without_speech(GenerateOutput(TextIds.of(ids), scores=(1, 2)))
    text_ids, audio = output
    assert text_ids is output and audio is None
    assert output.sequences is output["sequences"] and np.array_equal(output[0], ids)
    assert np.array_equal(output[0].sequences, ids) and output[0].scores == (1, 2)  # 4.57's pair, read by position
    assert list(output) == ["sequences", "scores"] and output[1] == (1, 2) and "scores" in output
    assert without_speech(GenerateOutput(TextIds.of(ids)))[1] is None
    assert dict(output).keys() == {"sequences", "scores"} and output.to_tuple()[1] == (1, 2)
