"""`ms-omni bench serve --url` on our own server."""

import json

from ms_omni.cli import main

from .conftest import KEY


def test_four_callers_two_at_a_time(server, tmp_path, capsys):
    arguments = ["--callers", "4", "--at-once", "1,2", "--tokens", "8", "--api-key", KEY, "--out", str(tmp_path)]
    assert main(["bench", "serve", "--url", server.url, *arguments]) == 0
    data = json.loads((tmp_path / "serve.json").read_text())
    assert data["model"] == "miniature" and data["server"] == f"{server.url}/v1"
    for at_once in (1, 2):
        found = {
            item["metric"]: item["ours"]["median"] for item in data["results"] if item["scenario"] == f"serve/{at_once}"
        }
        assert found["failed"] == 0 and 0 < found["first_token_p50_s"] <= found["first_token_max_s"]
        assert found["first_sound_p50_s"] > 0 and found["sound_per_s"] > 0 and found["under_runs"] >= 0
    assert "| callers at once | first token, median ms |" in capsys.readouterr().out


def test_a_wrong_key_is_one_line(server, tmp_path, capsys):
    arguments = ["--api-key", "wrong", "--out", str(tmp_path)]
    assert main(["bench", "serve", "--url", server.url, *arguments]) == 1
    assert "/v1/models answers 401: the API key is wrong" in capsys.readouterr().err
