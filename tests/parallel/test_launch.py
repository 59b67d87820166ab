"""What `ms-omni launch` refuses before it starts anything, and what it starts."""

import signal
import socket

import pytest

from ms_omni.commands.serve import python_command
from ms_omni.errors import InputError
from ms_omni.parallel import launch
from tests.parallel.launching import ROOT

WHO = "import os, sys; print(*(os.environ[n] for n in ('MS_ROLE', 'RANK_ID', 'DEVICE_ID', 'MS_WORKER_NUM')), flush=True)"


@pytest.fixture(autouse=True)
def no_scheduler(monkeypatch):
    """These jobs join nobody, so their scheduler has nothing to do."""
    monkeypatch.setattr(launch, "SCHEDULER", "")


def run(capfd, folder, code, cards=2):
    job = launch.Job(("-c", f"{WHO}\n{code}"), cards, log_dir=folder)
    return launch.run(job), *capfd.readouterr()


def test_ranks_are_told_who_they_are_and_rank_0_is_heard(capfd, tmp_path):
    code, out, err = run(capfd, tmp_path / "logs", "print('hush', file=sys.stderr)", cards=3)
    assert code == 0 and out == "MS_WORKER 0 0 3\n"
    assert err == f"3 processes, logs in {tmp_path / 'logs'}\nhush\n"
    assert (tmp_path / "logs/rank_2.log").read_text() == "MS_WORKER 2 2 3\nhush\n"
    assert (tmp_path / "logs/rank_0.log").read_text() == "hush\n"


def test_the_rank_that_failed_is_named_with_the_end_of_its_log(capfd, tmp_path):
    code, _, err = run(capfd, tmp_path, "if os.environ['RANK_ID'] == '1': sys.exit('no such picture')")
    assert code == 1 and "no such picture" in err
    assert err.endswith("ms-omni launch: rank 1 ended with exit code 1\n")


def test_a_rank_that_was_killed_is_named_and_the_others_are_ended(capfd, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "FOLLOW_S", 0.2)
    kill = "import time; os.environ['RANK_ID'] == '1' and os.kill(os.getpid(), 9); time.sleep(60)"
    code, _, err = run(capfd, tmp_path, kill)
    assert code == 128 + signal.SIGKILL and err.endswith("ms-omni launch: rank 1 was ended by SIGKILL\n")


def test_one_that_the_watch_ended_did_not_fail_first(capfd, tmp_path):
    ended = "import time; os.environ['RANK_ID'] == '0' and os.kill(os.getpid(), 15); time.sleep(1); sys.exit(3)"
    code, _, err = run(capfd, tmp_path, ended)
    assert code == 3 and "rank 1 ended with exit code 3" in err


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"cards": 0}, "the number of cards is 0, expected at least 1"),
        ({"machines": 2, "machine": 2, "port": 8118}, "--node-rank is 2, but there are 2 machines"),
        ({"machines": 2, "address": "10.0.0.1"}, "several machines need --master-port"),
        ({"machines": 2, "port": 8118}, "--master-addr is 127.0.0.1, which other machines cannot reach"),
        ({"port": 80}, "--master-port is 80, expected 1024 to 65535"),
        ({"machines": 2, "port": 8118, "address": "no.such.host.invalid"}, "no address that this machine knows"),
    ],
)
def test_what_cannot_be(wrong, said):
    with pytest.raises(InputError, match=said):
        launch.Job(**{"command": ("x.py",), "cards": 1, **wrong})


def test_a_busy_port_and_a_foreign_address_are_said_before_anything_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 cannot be used: Address already in use"):
            launch.run(launch.Job(("x.py",), 1, port=port, log_dir=tmp_path / "logs"))
    with pytest.raises(InputError, match="Cannot assign requested address. .* an address of this machine as --master-addr"):
        launch.run(launch.Job(("x.py",), 1, 2, 0, "192.0.2.1", 20111, tmp_path / "logs"))
    assert not (tmp_path / "logs").exists()


def test_what_can_be_run():
    script = str(ROOT / "launch/omni_speech.py")
    assert python_command(["generate", "--model", "x"]) == ("-m", "ms_omni.cli", "generate", "--model", "x")
    assert python_command(["--", script, "--x"]) == (script, "--x")
    for words, said in (
        ([], "got 'nothing' to run"),
        (["tiny", "x"], "got 'tiny x' to run"),
        (["no.py"], "there is no script"),
    ):
        with pytest.raises(InputError, match=said):
            python_command(words)


def test_interrupted_jobs_leave_with_130(tmp_path, capfd):
    code = "import time; os.environ['RANK_ID'] == '1' and os.kill(os.getppid(), 2); time.sleep(60)"
    assert run(capfd, tmp_path, code)[0] == 130
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
