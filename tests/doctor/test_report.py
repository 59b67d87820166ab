"""What a report must not hold, with values chosen to slip through; and what it must keep, or nobody can use it."""

import os
from types import SimpleNamespace

import pytest

from ms_omni.doctor import report
from ms_omni.doctor.report import ADDRESS, HOST, PATH, SECRET, USER
from ms_omni.doctor.runner import CHECKS, Options, error, note, ok

CHECK = CHECKS[0]
HOME = "/home/Jörg Müller"
ENVIRONMENT = {
    "HOME": HOME,
    "USER": "jmueller",
    "LOGNAME": "li",  # short enough to be part of other words
    "HOSTNAME": "npu-07.lab.example.com",
    "HF_TOKEN": "hf_QwErTyUiOpAsDfGh12",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG+bPxRfiCY=",
    "DB_PASSWORD": "correct horse(battery",
    "HTTPS_PROXY": "http://jmueller:geheim@proxy.intra:3128",
    "MS_SCHED_HOST": "10.20.30.40",
    "MS_OMNI_OPS": "reference",
    "ASCEND_HOME_PATH": "/opt/acme secret/Ascend/latest",
    "PYTHONPATH": "/mnt/kunde x/lib:/srv/geheim",
    "RANK_ID": "3",
}
GONE = [
    *(value for name, value in ENVIRONMENT.items() if name not in ("MS_OMNI_OPS", "RANK_ID", "LOGNAME")),
    "Müller",
    "npu-07",
    "geheim",
    "acme",
    "kunde",
    "lab.example.com",
    "fe80::1ff:fe23:4567:890a",
    "2001:db8::7",
    "172.16.254.1",
    "de:ad:be:ef:00:01",
    "someone@example.org",
    "projekt-x",
    "S3cret",
    "db01.corp",
]
LINES = [
    ok("driver 24.1.0.3, firmware 7.5.0.1.129; CANN 8.3.RC1 = 8.3.0.1.200 in /usr/local/Ascend/ascend-toolkit/latest"),
    ok("MindSpore 2.7.1 computes on Ascend; memory 1.2e+03 GB/s, a launch one by one 21.3 us"),
    note(
        f"{HOME}/checkpoints/projekt-x/v 2/model.safetensors: 7.0 GB of weights; then aclnnGroupedMatmulV4 on JMUELLER's NPU-07"
    ),
    note("li, npu-07-ib0 and li_ckpt: not in line, alive, client"),
    note(
        "connect 10.20.30.40:8118, 172.16.254.1, [2001:db8::7]:22, fe80::1ff:fe23:4567:890a%eth0 de:ad:be:ef:00:01 at 12:34:56"
    ),
    note(
        "https://someone:S3cret@db01.corp/x?y=z, s3://projekt-x/data, mail someone@example.org, host db01.corp.example.com"
    ),
    note(
        "token=S3cretS3cret api_key: S3cret Authorization: S3cret, Bearer S3cret.abc, correct horse(battery, wJalrXUtnFEMI/K7MDENG+bPxRfiCY="
    ),
    error(
        "'/opt/acme secret/a b.so' and \"../projekt-x/c\" and ~jmueller/d, projekt-x/e/f",
        "see https://www.mindspore.cn/install",
    ),
]
KEPT = [
    "24.1.0.3",
    "7.5.0.1.129",
    "8.3.RC1 = 8.3.0.1.200",
    "2.7.1",
    "1.2e+03 GB/s",
    "21.3 us",
    "7.0 GB of weights",
    "12:34:56",
]
KEPT += [
    "aclnnGroupedMatmulV4",
    "MS_OMNI_OPS=reference",
    "RANK_ID=3",
    "in line, alive, client",
    "https://www.mindspore.cn/install",
]


@pytest.fixture
def elsewhere(monkeypatch):
    """A process of somebody who would rather not be known."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    account = SimpleNamespace(pw_name="jmueller", pw_dir=HOME, pw_gecos="Jörg Müller,Room 7,,")
    monkeypatch.setattr(report.pwd, "getpwuid", lambda _: account)
    monkeypatch.setattr(report.os, "uname", lambda: SimpleNamespace(nodename="NPU-07.lab.example.com"))


def test_nothing_of_the_machine_is_left_and_all_of_the_findings_is(elsewhere):
    text = report.text_of([(CHECK, LINES)], Options("models/projekt-x"))
    lower = text.lower()
    assert [mark for mark in GONE if mark.lower() in lower] == []
    assert [words for words in KEPT if words not in text] == []
    assert f"\n   {USER}, {HOST}-ib0 and {USER}_ckpt: not" in text
    assert text.count("\n") > len(LINES) and "ms-omni" in text and "\0" not in text


@pytest.mark.parametrize(
    "text, expected",
    [
        ("N/A, GB/s, aclnn/aclop, 2 x 910B, libmindspore_core.so, set_env.sh", None),
        ("a spoken answer: 6 tokens, 0.48 s of sound", None),
        ("/a", PATH),
        ("in /data/my models/x y/z: no such file", f"in {PATH}: no such file"),
        ("(/data/a),/b;~/c", f"({PATH}),{PATH};{PATH}"),
        ("file:///data/a and ::1 and 127.0.0.1.", f"{ADDRESS} and {ADDRESS} and {ADDRESS}."),
        ("driver 24.1.0.3 on 24.1.0.3", f"driver 24.1.0.3 on {ADDRESS}"),
        ("sk-proj-abcdefgh12 in gpu3.cluster", f"{SECRET} in {HOST}"),
        ("\0001\0", "1"),  # the marks of our own are nobody else's
    ],
)
def test_what_counts_as_a_mark(text, expected):
    assert report.scrub(text, {}) == (text if expected is None else expected)


def test_an_account_that_nobody_knows(monkeypatch):
    def unknown(_):
        raise KeyError("uid not found: 12345")

    monkeypatch.setattr(report.pwd, "getpwuid", unknown)
    assert USER not in report.identities("/x").values() or os.environ.get("USER")
