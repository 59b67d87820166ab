"""By which rules a job is ended, told from reports and a clock of our own."""

import pytest

from ms_omni.parallel import members
from ms_omni.parallel.members import Members

HANG_S = 20.0


@pytest.fixture
def job():
    """Four processes that all have come and work on the same step."""
    found = Members(4, HANG_S)
    for rank in range(4):
        found.join(0.0, "here", 100 + rank, rank, {"MindSpore": "2.7.1"})
    for member in found.members:
        member.busy, member.steps = True, 7
    return found


def test_a_job_at_work_goes_on(job):
    job.members[2].idle_s = HANG_S + 1  # waits for the others, who compute
    assert job.verdict(1.0) is None


def test_who_has_come_and_who_has_not():
    job = Members(3, HANG_S)
    job.join(0.0, "here", 1, 1, {})
    assert not job.complete and job.missing() == "rank 0, 2"
    job.join(0.0, "there", 2, None, {})
    assert job.missing() == "1 of 3 processes"
    with pytest.raises(ValueError, match="another job uses this port"):
        job.join(0.0, "here", 3, 1, {})


def test_what_differs_is_named_with_its_ranks():
    job = Members(3, HANG_S)
    for rank, version in enumerate(("2.7.1", "2.10.0", "2.7.1")):
        job.join(0.0, "here", rank, rank, {"MindSpore": version, "Python": "3.11"})
    assert job.disagreement() == "MindSpore is 2.7.1 on rank 0, 2 but 2.10.0 on rank 1 (process 1 on here)"


def test_the_first_to_die_is_named_first(job):
    job.members[3].gone, job.members[1].gone = 50.2, 50.0
    assert job.verdict(1.0) == "rank 1 (process 101 on here) has died; then rank 3 (process 103 on here)"


def test_an_error_comes_before_the_deaths_that_a_launcher_adds(job):
    job.members[1].failed, job.members[1].since, job.members[0].gone = True, 0.5, 50.0
    assert job.verdict(1.0) == "rank 1 (process 101 on here) ended with an error"


def test_an_error_leaves_the_others_time_to_say_the_same(job):
    job.members[1].failed, job.members[1].since = True, 1.0
    assert job.verdict(1.0 + members.FOLLOW_S - 0.1) is None
    assert "rank 1" in job.verdict(1.0 + members.FOLLOW_S + 0.1)


def test_silence_and_stopped_processes(job):
    job.members[1].stopped_s = members.STOPPED_S + 1
    assert "rank 1 (process 101 on here) has been stopped" in job.verdict(1.0)
    job.members[0].heard = -members.SILENT_S
    assert "nothing was heard from rank 0" in job.verdict(1.0)


def test_the_rank_that_came_least_far_hangs_not_those_that_wait_for_it(job):
    for member in job.members:
        member.idle_s, member.steps = HANG_S + 5, 8
    job.members[2].steps = 7
    assert job.verdict(1.0) == "rank 2 (process 102 on here) did nothing for 20 s"
    job.members[2].busy = False  # it waits for its user
    assert job.verdict(1.0) is None


def test_all_waiting_for_one_another_is_a_hang(job):
    for member in job.members:
        member.idle_s = HANG_S + 1
    assert job.verdict(1.0) == "rank 0, 1, 2, 3 did nothing for 20 s"
    job.hang_s = 0
    assert job.verdict(1.0) is None


def test_an_endless_loop_is_a_hang_after_a_long_time(job):
    for member in job.members:
        member.steps, member.idle_s, member.unmarked_s = 8, 100.0, 100.0
    spinning = job.members[0]
    spinning.steps, spinning.idle_s = 7, 0.0
    assert job.verdict(1.0) is None
    spinning.unmarked_s = members.SPIN_FACTOR * HANG_S + 1
    assert job.verdict(1.0) == "rank 0 (process 100 on here) came no further for 600 s"


def test_a_rank_that_left_ends_those_that_wait_for_it_only(job):
    job.members[3].since = 0.0
    assert job.verdict(members.LEFT_WAIT_S + 1) is None  # the others do something that does not need it
    for member in job.members:
        member.heard = 6.0
    job.members[0].steps, job.members[0].idle_s = 8, members.LEFT_WAIT_S + 1
    assert "rank 3 (process 103 on here) has left while rank 0 (process 100 on here) waited" in job.verdict(6.0)
