import pytest

from . import run, stub


@pytest.fixture(scope="session")
def libraries(tmp_path_factory):
    """The stand-ins for the MindSpore that runs the tests, made once."""
    reason = stub.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("ascend-dryrun") / "libraries"
    stub.build(folder)
    return folder


@pytest.fixture(scope="session")
def dry(libraries, tmp_path_factory):
    """What `run.py --json` prints for a part, each once in a session."""
    found = {}

    def result(*request, **more):
        key = (request, tuple(more.items()))
        if key not in found:
            found[key] = run.dry_run(request[0], libraries, tmp_path_factory.mktemp("dry") / "work", *request[1:], **more)
        return found[key]

    return result
