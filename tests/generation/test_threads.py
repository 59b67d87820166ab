"""Several threads at once: every answer is that of a thread alone, and nobody waits for a whole answer of another."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

TEXTS = ("hello world", "what is this? one two three", "yes")
WORDS, FRAMES = 4, 2
OPTIONS = {"max_new_tokens": WORDS, "talker_max_new_tokens": FRAMES + 1, "seed": 5, "do_sample": True, "speaker": "Ethan"}
LIMIT_S = 60
FIRST_USE = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
folder, start = sys.argv[1], threading.Barrier(4, timeout=60)
TEXT = [[{"role": "user", "content": "hello"}]]

def load(name):
    start.wait()
    import ms_omni
    return getattr(ms_omni, name).from_pretrained(folder)

def read(name):
    processor = load(name)
    return processor.apply_chat_template(TEXT, tokenize=True, return_dict=True, add_generation_prompt=True)

with ThreadPoolExecutor(4) as pool:
    models = [pool.submit(load, "Qwen3OmniMoeForConditionalGeneration") for _ in range(2)]
    inputs = [pool.submit(read, "Qwen3OmniMoeProcessor") for _ in range(2)]
    models, inputs = [model.result() for model in models], [one.result() for one in inputs]
    answers = pool.map(lambda model, one: model.generate(**one, max_new_tokens=3, return_audio=False).tolist(), models, inputs)
one, two = answers
print(one == two, inputs[0]["input_ids"].tolist() == inputs[1]["input_ids"].tolist())
"""


def test_four_threads_get_the_answers_of_one(tiny_model, ask):
    questions = [(ask(text), speech) for text in TEXTS[:2] for speech in (False, True)]

    def answer(question):
        inputs, speech = questions[question]
        ids, audio = tiny_model.generate(**inputs, **OPTIONS, return_audio=speech)
        return ids.tolist(), None if audio is None else audio.tolist()

    alone = [answer(question) for question in range(4)]
    order = [(thread + turn) % 4 for turn in range(10) for thread in range(4)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, order)) == [alone[question] for question in order]


def test_a_stream_goes_on_while_another_is_read(tiny_model, ask):
    """The second one is begun and read to its end, in a thread of its own, in the middle of the first."""
    whole = [list(map(said, tiny_model.stream(**ask(text), **OPTIONS))) for text in TEXTS[:2]]
    first = tiny_model.stream(**ask(TEXTS[0]), **OPTIONS)
    seen = [said(next(first)) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(lambda: list(map(said, tiny_model.stream(**ask(TEXTS[1]), **OPTIONS)))).result(LIMIT_S)
        seen += pool.submit(lambda: list(map(said, first))).result(LIMIT_S)  # and a stream may change threads
    assert [seen, second] == whole


def said(event):
    """What an event holds apart from its times."""
    values = (getattr(event, name, None) for name in ("token", "pcm", "start", "sequences", "frames"))
    return [type(event).__name__, *(value.tolist() if isinstance(value, np.ndarray) else value for value in values)]


def test_the_callers_code_may_wait_for_a_thread_that_asks_the_model(tiny_model, ask):
    inputs, other = ask(TEXTS[0]), ask(TEXTS[1])
    options = {"max_new_tokens": 3, "do_sample": False}
    alone, others = (tiny_model.thinker.generate(**one, **options).tolist() for one in (inputs, other))
    found = []

    def ask_in_a_thread():
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(lambda: tiny_model.thinker.generate(**other, **options).tolist()).result(LIMIT_S))

    def process(ids, scores):
        ask_in_a_thread()
        return scores

    def stop(ids, scores):
        ask_in_a_thread()
        found.append(tiny_model.thinker.generate(**other, **options).tolist())  # or ask it itself
        return False

    class Streamer:
        put = staticmethod(lambda ids: ask_in_a_thread())
        end = staticmethod(ask_in_a_thread)

    given = tiny_model.thinker.generate(
        **inputs, **options, logits_processor=[process], stopping_criteria=[stop], streamer=Streamer
    )
    assert given.tolist() == alone and len(found) > 10 and found == [others] * len(found)


def test_two_threads_take_a_gradient_while_another_answers(tiny_model, ask):
    import mindspore as ms

    thinker, inputs = tiny_model.thinker, ask(TEXTS[0])
    weights = [thinker.model.norm.weight]
    step = ms.value_and_grad(lambda: thinker(**inputs, labels=inputs["input_ids"]).loss, None, weights)

    def train():
        loss, (gradient,) = step()
        return loss.asnumpy().tolist(), gradient.asnumpy().tolist()

    def answer():
        return thinker.generate(**inputs, max_new_tokens=3, do_sample=False, output_logits=True).tolist()

    alone = [train(), train(), answer()]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            assert [one.result(LIMIT_S) for one in [pool.submit(train), pool.submit(train), pool.submit(answer)]] == alone


def test_the_parts_of_a_model_are_called_by_several_threads(tiny_model, ask):
    vocoder = tiny_model.code2wav
    codes = np.arange(vocoder.config.num_quantizers * 8).reshape(1, -1, 8) % vocoder.config.codebook_size
    inputs = ask(*TEXTS)
    calls = [
        lambda: vocoder.chunked_decode(codes, chunk_size=3).asnumpy(),
        lambda: np.concatenate([stream.step(codes[..., :3]).asnumpy() for stream in [vocoder.stream()]]),
        lambda: tiny_model.thinker(**inputs, use_cache=False).logits.asnumpy(),
        lambda: tiny_model.talker(input_ids=codes[0, :2]).logits.asnumpy(),
    ] * 3
    alone = [call() for call in calls]
    with ThreadPoolExecutor(4) as pool:
        for found, expected in zip(pool.map(lambda call: call(), calls), alone):
            assert (found == expected).all()


def test_a_processor_reads_for_several_threads(processor):
    """With options that the tokenizer keeps between its calls."""
    texts = ["a b c d e f " * 20, "g"]
    calls = [
        lambda: processor.tokenizer(texts, padding="max_length", max_length=30, truncation=True)["input_ids"],
        lambda: processor(text=texts, padding=True, return_tensors="np")["input_ids"].tolist(),
        lambda: processor.tokenizer(texts)["input_ids"],
        lambda: processor(text=texts, truncation=True, max_length=5, return_tensors="np")["input_ids"].tolist(),
    ]
    alone = [call() for call in calls]

    def again(which):
        return all(calls[which]() == alone[which] for _ in range(60))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(again, range(4)))


def test_several_threads_load_and_are_the_first_to_do_so(tiny_checkpoint):
    found = subprocess.run(
        [sys.executable, "-c", FIRST_USE, tiny_checkpoint], capture_output=True, text=True, timeout=LIMIT_S * 2
    )
    assert found.stdout.strip() == "True True", found.stderr[-3000:]


def test_another_thread_waits_for_the_event_of_a_shared_stream(tiny_model, ask):
    stream = tiny_model.stream(**ask(TEXTS[2]), max_new_tokens=12, eos_token_id=[], return_audio=False)
    with ThreadPoolExecutor(3) as pool:
        events = [event for part in pool.map(lambda _: list(stream), range(3)) for event in part]
    assert sorted(type(event).__name__ for event in events) == ["StreamEnd", *["TextDelta"] * 12]
    stream.close()
