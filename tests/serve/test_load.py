"""Clients of all manners at once: nobody gets another's answer, and the server stays as it was."""

import asyncio

import pytest

from .load import BODY_MB, MANNERS, failed, load


@pytest.mark.slow
def test_sixteen_clients_for_half_a_minute(make_server):
    server = make_server("--max-body-mb", f"{BODY_MB}", "--max-rows", "8")
    server.wait()
    found = asyncio.run(load(server, clients=16, seconds=30))
    assert not failed(found), found
    assert found["answers"] >= 16 and found["others"].keys() >= MANNERS.keys(), found
    memory = found["memory_mib"]
    assert memory["end"] < 1.2 * memory["start"] + 100, found
    assert "Traceback" not in server.said()
