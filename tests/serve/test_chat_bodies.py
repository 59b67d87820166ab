"""Bodies that are wrong: each is a 400 that names the argument, and none a 500."""

import base64
import json

import pytest

from .test_chat import DIGITS, NAME, SHAPE, STAR

USER = {"role": "user", "content": "What is 1 plus 1?"}
AUDIO = {"voice": "Ethan", "format": "wav"}
BOTH = ["text", "audio"]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TOO_MANY = [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]
DEEP = "x"
for _ in range(500):
    DEEP = [DEEP]


def part(**fields):
    return {"messages": [{"role": "user", "content": [fields]}]}


def picture(url):
    return part(type="image_url", image_url={"url": url})


def message(**fields):
    return {"messages": [fields]}


WRONG = [  # (what is other than in a good body, the param of the error)
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": {}}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": ["hello"]}, "messages[0]"),
    ({"messages": [None]}, "messages[0]"),
    ({"messages": [USER, {"role": "user"}]}, "messages[1]"),
    (message(content="x"), "messages[0].role"),
    (message(role="nobody", content="x"), "messages[0].role"),
    (message(role=1, content="x"), "messages[0].role"),
    (message(role="user", content=1), "messages[0].content"),
    (message(role="user", content="half of \ud83d"), None),
    (message(role="user", content={}), "messages[0].content"),
    (message(role="user", content=[]), "messages[0]"),
    (message(role="user", content=["x"]), "messages[0].content[0]"),
    (message(role="user", content=[[]]), "messages[0].content[0]"),
    (message(role="user", content="x", audio={"id": "audio_1"}), "messages[0]"),
    (message(role="user", content="x", colour="red"), "messages[0].colour"),
    (message(role="system", content=[STAR]), "messages[0]"),
    (message(role="assistant", content=[STAR]), "messages[0]"),
    (message(role="assistant"), "messages[0]"),
    (message(role="assistant", audio={"id": "audio_" + 32 * "0"}), "messages[0].audio.id"),
    (message(role="assistant", audio={"id": 7}), "messages[0].audio.id"),
    (message(role="assistant", audio={}), "messages[0]"),
    (message(role="assistant", tool_calls=[{}]), "messages[0].tool_calls[0].function"),
    (message(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": 3}}]), "messages[0].tool_calls[0].function.arguments"),
    (message(role="assistant", tool_calls=[{"type": "custom", "function": {"name": "f"}}]), "messages[0].tool_calls[0].type"),
    (message(role="assistant", function_call={"name": "f", "arguments": "{}"}), "messages[0].function_call"),
    (part(), "messages[0].content[0].type"),
    (part(type="smell"), "messages[0].content[0].type"),
    (part(type="text"), "messages[0].content[0]"),
    (part(type="text", text=None), "messages[0].content[0]"),
    (part(type="text", text=3), "messages[0].content[0].text"),
    (part(type="text", text="x", colour="red"), "messages[0].content[0].colour"),
    (part(type="text", text="x", image_url={"url": "data:,"}), "messages[0].content[0]"),
    (part(type="image_url"), "messages[0].content[0]"),
    (part(type="image_url", image_url={}), "messages[0].content[0].image_url.url"),
    (part(type="image_url", image_url={"url": ""}), "messages[0].content[0].image_url.url"),
    (part(type="image_url", image_url={"url": 3}), "messages[0].content[0].image_url.url"),
    (part(type="image_url", image_url={"url": "data:,", "detail": "much"}), "messages[0].content[0].image_url.detail"),
    (part(type="image_url", image_url={"url": "data:,"}, max_pixels=0), "messages[0].content[0].max_pixels"),
    (part(type="image_url", image_url={"url": "data:,"}, max_pixels="many"), "messages[0].content[0].max_pixels"),
    (part(type="image_url", image_url={"url": "data:,"}, max_pixels=10**400), "messages[0].content[0].max_pixels"),
    (part(**STAR, fps=2), "messages[0].content[0].fps"),
    (part(type="text", text="x", min_pixels=9), "messages[0].content[0].min_pixels"),
    (part(type="refusal", refusal="x", audio_end=9), "messages[0].content[0].audio_end"),
    (part(**DIGITS, min_pixels=9), "messages[0].content[0].min_pixels"),
    (part(**DIGITS, audio_start=1e308), "messages[0].content[0].audio_start"),
    (part(type="video_url", video_url="data:,", audio_start=1), "messages[0].content[0].audio_start"),
    (part(type="video_url", video_url="data:,", nframes=10**400), "messages[0].content[0].nframes"),
    (part(type="audio_url", audio_url={"url": "data:,", "detail": "low"}), "messages[0].content[0].audio_url.detail"),
    (part(type="file", file={"file_data": STAR["image_url"]["url"]}, fps=2), "messages[0].content[0].fps"),
    (part(type="input_audio", input_audio={"data": "data:,x", "format": "pcm16"}), "messages[0].content[0].input_audio.data"),
    (picture("/etc/passwd"), "messages[0].content[0]"),
    (picture("../../etc/passwd"), "messages[0].content[0].image_url.url"),
    (picture("file:///etc/passwd"), "messages[0].content[0].image_url.url"),
    (picture("FILE:/etc/passwd"), "messages[0].content[0].image_url.url"),
    (picture("ftp://example.com/a.png"), "messages[0].content[0].image_url.url"),
    (picture("gopher://127.0.0.1/"), "messages[0].content[0].image_url.url"),
    (picture("http://127.0.0.1:1/a.png"), "messages[0].content[0]"),
    (picture("http://169.254.169.254/latest/meta-data"), "messages[0].content[0]"),
    (picture("http://localhost/a.png"), "messages[0].content[0]"),
    (picture("https://[::1]/a.png"), "messages[0].content[0]"),
    (picture("http://"), "messages[0].content[0]"),
    (picture("data:image/png;base64,????"), "messages[0].content[0]"),
    (picture("data:image/png;base64,aGVsbG8="), "messages[0].content[0]"),
    (picture("data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()), "messages[0].content[0]"),
    (picture("not base64 !!"), "messages[0].content[0].image_url.url"),
    (part(type="image_url", image_url="/etc/passwd"), "messages[0].content[0]"),
    (part(type="video_url", video_url={"url": "/etc/passwd"}), "messages[0].content[0]"),
    (part(type="video_url", video_url={"url": "data:video/mp4;base64,AAAA"}), "messages[0].content[0]"),
    (part(type="audio_url", audio_url={"url": "file:/etc/passwd"}), "messages[0].content[0].audio_url.url"),
    (part(type="input_audio", input_audio={}), "messages[0].content[0].input_audio.data"),
    (part(type="input_audio", input_audio={"data": "", "format": "wav"}), "messages[0].content[0].input_audio.data"),
    (part(type="input_audio", input_audio={"data": "????", "format": "wav"}), "messages[0].content[0].input_audio.data"),
    (part(type="input_audio", input_audio={"data": "aGVsbG8=", "format": "wav"}), "messages[0].content[0]"),
    (part(type="input_audio", input_audio={"data": "AAA=", "format": "pcm16"}), "messages[0].content[0]"),
    (part(type="input_audio", input_audio={"data": "/etc/passwd", "format": "wav"}), "messages[0].content[0]"),
    (part(type="input_audio", input_audio="AAAA"), "messages[0].content[0].input_audio"),
    (part(type="file", file={}), "messages[0].content[0].file.file_data"),
    (part(type="file", file={"file_id": "file-1"}), "messages[0].content[0].file.file_id"),
    (part(type="file", file={"file_data": "aGVsbG8=", "filename": "a.pdf"}), "messages[0].content[0].file.file_data"),
    ({"messages": DEEP}, None),
    ({"model": "gpt-4o"}, "model"),
    ({"model": 3}, "model"),
    ({"no_such_thing": 1}, "no_such_thing"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": True}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_tokens": 10**9}, "max_completion_tokens"),
    ({"max_completion_tokens": "9"}, "max_completion_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
    ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 2.5}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.5}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"seed": 1.5}, "seed"),
    ({"seed": 2**70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a", ""]}, "stop[1]"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": 3}, "stop"),
    ({"logit_bias": {"5": 200}}, "logit_bias.5"),
    ({"logit_bias": {"five": 1}}, "logit_bias"),
    ({"logit_bias": {"99999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1" * 5000: 1}}, "logit_bias"),
    ({"logit_bias": {str(id): 1 for id in range(1025)}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"stop_token_ids": [1] * 257}, "stop_token_ids"),
    ({"top_k": 2**31}, "top_k"),
    ({"min_tokens": 2**31}, "min_tokens"),
    ({"stop_token_ids": [99999999]}, "stop_token_ids"),
    ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
    ({"logprobs": 3}, "logprobs"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_everything": True}}, "stream_options.include_everything"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"modalities": []}, "modalities"),
    ({"modalities": ["smell"]}, "modalities[0]"),
    ({"modalities": "text"}, "modalities"),
    ({"modalities": BOTH}, "audio"),
    ({"audio": AUDIO}, "audio"),
    ({"modalities": BOTH, "audio": {"format": "wav"}}, "audio.voice"),
    ({"modalities": BOTH, "audio": {"voice": "Ethan"}}, "audio.format"),
    ({"modalities": BOTH, "audio": {"voice": "Ethan", "format": "midi"}}, "audio.format"),
    ({"modalities": BOTH, "audio": {"voice": "alloy", "format": "wav"}}, "audio.voice"),
    ({"modalities": BOTH, "audio": {"voice": {"id": "x"}, "format": "wav"}}, "audio.voice"),
    ({"modalities": BOTH, "audio": {"voice": 3, "format": "wav"}}, "audio.voice"),
    ({"modalities": BOTH, "audio": AUDIO, "stream": True}, "audio.format"),
    ({"modalities": BOTH, "audio": AUDIO, "messages": [{"role": "system", "content": "x"}]}, "messages"),
    ({"modalities": BOTH, "audio": AUDIO, "chunk_frames": 0}, "chunk_frames"),
    ({"modalities": BOTH, "audio": AUDIO, "chunk_frames": []}, "chunk_frames"),
    ({"talker_temperature": 1}, "talker_temperature"),
    ({"tools": {}}, "tools"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools[0].function.parameters"),
    ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, None),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tools": TOO_MANY}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "maybe"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice"),
    ({"response_format": "json"}, "response_format"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"store": True}, "store"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"verbosity": "low"}, "verbosity"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"metadata": {"a": 1}}, "metadata.a"),
    ({"fps": 1, "num_frames": 4}, "fps"),
    ({"fps": 0}, "fps"),
    ({"fps": 1e300}, "fps"),
    ({"num_frames": 10**400}, "num_frames"),
    ({"min_pixels": 10**400}, "min_pixels"),
    ({"min_pixels": 10**9, "max_pixels": 10, "messages": SHAPE}, None),
    ({"chat_template_kwargs": {"policy": 1}}, "chat_template_kwargs.policy"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "param"), WRONG, ids=lambda value: None if isinstance(value, dict) else str(value))
def test_it_is_refused(http, change, param):
    answer = http.post("/v1/chat/completions", content=json.dumps({"model": NAME, "messages": [USER], **change}))
    assert answer.status_code == (404 if change.get("model") == "gpt-4o" else 400), answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and len(error["message"]) > 10
    assert param is None or error["param"] == param, error
    assert "root:" not in answer.text and "/work" not in answer.text


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "3", '"x"', "\xff", "{" * 100_000, '{"messages": NaN}', "[" * 100_000]
)
def test_it_is_no_body(http, text):
    answer = http.post("/v1/chat/completions", content=text.encode("latin-1"))
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_what_changes_nothing_is_taken(client):
    options = {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "safety_identifier": "s"}
    more = {"prompt_cache_key": "k", "n": 1, "presence_penalty": 0, "logit_bias": {}, "top_p": 1, "verbosity": "medium"}
    answer = client.chat.completions.create(model=NAME, messages=SHAPE, **options, **more)
    assert answer.choices[0].message.content == "star"


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "developer", "content": "Answer."}, *SHAPE],
        [{"role": "system", "content": [{"type": "text", "text": "Answer."}]}, *SHAPE],
        [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{DIGITS['input_audio']['data']}"}}]}],
        [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": f"data:audio/wav;base64,{DIGITS['input_audio']['data']}", "format": "mp3"}}]}],
        [{"role": "user", "content": [{"type": "file", "file": {"file_data": STAR["image_url"]["url"]}}]}],
        [{"role": "user", "content": [{"type": "file", "file": {"file_data": STAR["image_url"]["url"].partition(",")[2], "filename": "a.jpg"}}]}],
        [{"role": "user", "content": [{**STAR, "max_pixels": 50_000}, {"type": "text", "text": "What is it?"}], "name": "Ann"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "refusal": "No."}, *SHAPE],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, *SHAPE],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "2", "reasoning_content": "1 + 1"}, *SHAPE],
        [{"role": "user", "content": "x"}, {"role": "function", "name": "f", "content": "3"}],
        [{"role": "assistant", "content": "Hello."}, *SHAPE],
    ],
)  # fmt: skip
def test_messages_of_all_kinds_are_taken(http, messages):
    answer = http.post("/v1/chat/completions", json={"model": NAME, "messages": messages, "max_tokens": 4})
    assert answer.status_code == 200, answer.text


def test_details_of_pictures_count(http):
    def tokens(detail):
        content = [{"type": "image_url", "image_url": {**STAR["image_url"], "detail": detail}}]
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 1}
        return http.post("/v1/chat/completions", json=body).json()["usage"]["prompt_tokens_details"]["image_tokens"]

    assert tokens("low") <= tokens("high") == tokens("auto")
