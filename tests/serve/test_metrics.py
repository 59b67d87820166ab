"""What a server tells of itself: counters that add up, names that dashboards know, a line for each request."""

import json
import re
import time
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ms_omni.input.processor import Qwen3OmniMoeProcessor
from ms_omni.outputs import AudioChunk, StreamEnd, StreamError, TextDelta
from ms_omni.serve.metrics import ABORT, AnswerMeter, Metrics, RequestTotals, print_content

from .conftest import MINIATURE
from .test_server import error_of

BOARD = (  # what vLLM's dashboard for Grafana asks for
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:kv_cache_usage_perc",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_success_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)
OURS = (
    "ms_omni_first_sound_seconds_bucket",
    "ms_omni_real_time_factor_bucket",
    "ms_omni_under_runs_total",
    "ms_omni_silence_seconds_total",
    "ms_omni_sound_seconds_total",
    "ms_omni_requests_cancelled_total",
    "process_resident_memory_bytes",
)


def scraped(http):
    """`{(name, its labels but for the model's name): value}` of all samples."""
    response = http.get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, tuple(value for name, value in sorted(sample.labels.items()) if name != "model_name")): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def test_names_that_dashboards_know(http):
    names = {name for name, _ in scraped(http)}
    assert not {*BOARD, *OURS} - names
    families = text_string_to_metric_families(http.get("/metrics").text)
    models = {sample.labels.get("model_name") for one in families if one.name.startswith("vllm:") for sample in one.samples}
    assert models == {"miniature"}


def test_requests_are_counted_by_route_and_status(http):
    before = scraped(http)
    (
        http.get("/v1/models"),
        http.get("/v1/models"),
        http.get("/v1/models/other"),
        http.get("/v1/nothing/1"),
        http.get("/v1/no/2"),
    )
    http.request("BREW", "/v1/models")
    after = scraped(http)

    def more(*labels):  # handler, method, status
        key = ("http_requests_total", labels)
        return after.get(key, 0) - before.get(key, 0)

    assert more("/v1/models", "GET", "200") == 2
    assert more("/v1/models/{name:path}", "GET", "404") == 1
    assert more("/v1/models", "other", "405") == 1
    assert more("other", "GET", "404") == 2, "paths of callers' own are one"


def test_a_line_for_each_request(server, http):
    http.get("/v1/models/nobody%0Aroot", params={"api_key": "a-secret"})
    http.get("/health")
    time.sleep(0.2)
    lines = [line for line in server.said().splitlines() if "nobody" in line]
    assert len(lines) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d GET /v1/models/nobody%0Aroot 404 \d+ ms", lines[0])
    assert "a-secret" not in server.said() and "/health" not in server.said()


def test_needs_a_key(server, http):
    http.headers.pop("authorization")
    error_of(http.get("/metrics"), 401)


# -- one answer ------------------------------------------------------------------------------------------------------


@pytest.fixture
def metrics():
    server = SimpleNamespace(settings=SimpleNamespace(name="a-model"), worker=SimpleNamespace(engine=None))
    return Metrics(server)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(name, {"model_name": "a-model", **labels})


def delta(token):
    return TextDelta(np.array([token]), np.ones(1, bool), ("x",))


END = StreamEnd(np.zeros((1, 3)), np.array([2]), np.array([0]), 0.1, None, 0.2, ("stop",))


def test_an_answer_in_text(metrics):
    heard = []
    answer = AnswerMeter(metrics, 7, heard.append)
    for event in (delta(3), delta(4), delta(5), END):
        answer.observe(event)
    answer.leave()  # too late to count
    assert heard == [answer] and answer.ids == [3, 4, 5]
    assert value(metrics, "vllm:prompt_tokens_total") == 7 and value(metrics, "vllm:generation_tokens_total") == 3
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 1
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 2
    assert (
        value(metrics, "vllm:time_to_first_token_seconds_count")
        == value(metrics, "vllm:e2e_request_latency_seconds_count")
        == 1
    )
    assert value(metrics, "ms_omni_first_sound_seconds_count") == value(metrics, "ms_omni_requests_cancelled_total") == 0


def test_an_answer_with_speech(metrics):
    answer = AnswerMeter(metrics, 7)
    sound = AudioChunk(0, np.zeros((1, 240), np.float32), np.array([240]))
    answer.observe(delta(3)), answer.observe(delta(3)), answer.observe(sound)
    time.sleep(0.03)
    answer.observe(sound), answer.observe(END)
    assert value(metrics, "ms_omni_sound_seconds_total") == pytest.approx(0.02)
    assert value(metrics, "ms_omni_under_runs_total") == 1 and 0.015 < value(metrics, "ms_omni_silence_seconds_total") < 1
    assert value(metrics, "ms_omni_real_time_factor_count") == value(metrics, "ms_omni_first_sound_seconds_count") == 1
    assert value(metrics, "vllm:inter_token_latency_seconds_count") == 0, "its words come as they are said"


def test_answers_that_do_not_end(metrics):
    gone, failed = AnswerMeter(metrics, 1), AnswerMeter(metrics, 1)
    gone.observe(delta(3)), gone.leave(), gone.leave()
    failed.observe(StreamError(ValueError("no")))
    assert gone.reason == ABORT and value(metrics, "ms_omni_requests_cancelled_total") == 1
    ended = {name: value(metrics, "vllm:request_success_total", finished_reason=name) for name in ("stop", "abort", "error")}
    assert ended == {"stop": 0, "abort": 1, "error": 1}
    assert value(metrics, "vllm:e2e_request_latency_seconds_count") == 0


def test_answers_that_nobody_has_asked_for(metrics):
    """They count once somebody does, also behind their end."""
    dropped, early, late = (AnswerMeter(metrics, 1, wanted=False) for _ in range(3))
    for answer in (dropped, early, late):
        answer.observe(delta(3))
    early.claim()
    for answer in (early, late):
        answer.observe(END)
    dropped.leave(), late.claim()
    assert value(metrics, "vllm:request_success_total", finished_reason="stop") == 2
    assert value(metrics, "vllm:prompt_tokens_total") == 2 and value(metrics, "ms_omni_requests_cancelled_total") == 0


def test_answers_of_a_socket_are_summed_up(metrics):
    answers = RequestTotals()
    for number in range(100):
        answer = AnswerMeter(metrics, 2, wanted=number < 90)
        answers.add(answer)
        answer.observe(delta(3)), answer.observe(END)
    assert len(answers.running) == 1
    answers.sum_up(last=True)
    assert (answers.prompt_tokens, answers.tokens) == (180, 90)


def test_content_is_told_as_one_line_of_json(metrics, capsys):
    processor = Qwen3OmniMoeProcessor.from_pretrained(MINIATURE)
    sound = {"type": "audio", "audio": np.zeros(16_000, np.float32)}
    content = [sound, {"type": "text", "text": "What\nis said?"}]
    inputs = processor.apply_chat_template([[{"role": "user", "content": content}]], tokenize=True, return_dict=True)
    answer = AnswerMeter(metrics, 7, lambda one: print_content(processor, inputs["input_ids"][0], one))
    for token in processor.tokenizer("3\n7", add_special_tokens=False)["input_ids"]:
        answer.observe(delta(token))
    answer.observe(END)
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert told["answered"] == "3\n7" and told["end"] == "stop"
    assert "What\nis said?" in told["asked"] and told["asked"].count("<|audio_pad|>") == 1


def test_content_is_not_told_unless_asked(server, http):
    body = {"model": "miniature", "messages": [{"role": "user", "content": "Say 3141 and xyzzy."}], "max_tokens": 2}
    before = scraped(http)
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200
    time.sleep(0.2)
    assert "xyzzy" not in server.said() and "3141" not in server.said()
    usage, after = answer.json()["usage"], scraped(http)
    counts = usage["prompt_tokens"], usage["completion_tokens"]
    line = next(line for line in reversed(server.said().splitlines()) if "/v1/chat/completions" in line)
    assert re.search(r"POST /v1/chat/completions 200 \d+ ms, {} \+ {} tokens$".format(*counts), line)
    names = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")
    assert tuple(after[name, ()] - before[name, ()] for name in names) == counts
    assert after["vllm:request_success_total", ("length",)] - before["vllm:request_success_total", ("length",)] == 1
