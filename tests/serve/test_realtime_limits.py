"""How many conversations there may be, how long they may be silent, and how they end with the server."""

import json
import signal

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.serve.conftest import KEY


def address(server):
    return server.url.replace("http", "ws") + "/v1/realtime"


def rest_of(socket):
    """The events until the socket is closed, and how it is."""
    found = []
    try:
        while True:
            found.append(json.loads(socket.recv(timeout=60)))
    except ConnectionClosed as closed:
        return found, closed.rcvd


def test_there_is_an_end_to_everything(make_server):
    server = make_server("--max-sessions", "1", "--session-timeout", "3", key=KEY)
    server.wait()
    with connect(address(server), additional_headers=server.headers) as socket:
        with pytest.raises(InvalidStatus) as refused, connect(address(server), additional_headers=server.headers):
            pass
        assert refused.value.response.status_code == 429 and "Retry-After" in refused.value.response.headers
        events, closed = rest_of(socket)
        assert [event["type"] for event in events] == ["session.created", "error"]
        assert closed.code == 1008 and "3 s" in closed.reason
    with connect(address(server), additional_headers=server.headers) as socket:
        asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say a blue star and 17."}]}
        for event in ({"type": "conversation.item.create", "item": asked}, {"type": "response.create"}):
            socket.send(json.dumps(event))
        while json.loads(socket.recv(timeout=60))["type"] != "response.created":
            pass
        server.process.send_signal(signal.SIGTERM)
        events, closed = rest_of(socket)
        done = next(event["response"] for event in events if event["type"] == "response.done")
        assert done["status"] == "completed" and done["output"][0]["content"][0]["transcript"] == "a blue star and 17"
        assert events[-1]["error"]["code"] == "session_ended" and closed.code == 1012
    assert server.process.wait(30) == 0, server.said()


def test_conversations_know_nothing_of_each_other(server):
    url, headers = address(server), server.headers
    with connect(url, additional_headers=headers) as one, connect(url, additional_headers=headers) as other:
        item = {"type": "message", "id": "mine", "role": "user", "content": [{"type": "input_text", "text": "x"}]}
        one.send(json.dumps({"type": "conversation.item.create", "item": item}))
        while json.loads(one.recv(timeout=60))["type"] != "conversation.item.done":
            pass
        other.send(json.dumps({"type": "conversation.item.retrieve", "item_id": "mine"}))
        assert json.loads(other.recv(timeout=60))["type"] == "session.created"
        assert json.loads(other.recv(timeout=60))["error"]["code"] == "item_retrieve_invalid_item_id"
