"""The texts of Ray that ftae reads are still what Ray writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError

from ftae.search.ray.hang_detector import is_other_token, is_worker, newest_error, reason_of


@pytest.mark.usefixtures("ray_session")
def test_a_worker_is_known_by_its_title() -> None:
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    assert is_worker(worker)
    assert not is_worker(os.getpid())
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert not is_worker(process.pid)


@pytest.mark.usefixtures("ray_session")
def test_the_reason_of_an_exception_in_a_task_is_the_last_line() -> None:
    def task() -> None:
        raise ModuleNotFoundError("No module named 'ftae.tomorrow'")

    with pytest.raises(RayTaskError) as caught:
        ray.get(ray.remote(task).remote())
    assert reason_of(caught.value) == "ModuleNotFoundError: No module named 'ftae.tomorrow'"


@pytest.mark.usefixtures("ray_session")
def test_the_reason_of_a_lost_worker_is_the_first_line() -> None:
    task = ray.remote(max_retries=0)(lambda: os._exit(1)).remote()
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(task)
    assert "died unexpectedly" in reason_of(caught.value)
    assert "\n" not in reason_of(RayActorError())


def test_another_token_is_known_by_the_name_of_rays_error() -> None:
    assert is_other_token(f"Traceback ...\n{AuthenticationError.__module__}.{AuthenticationError.__name__}: no\n")
    assert is_other_token("status: 16 InvalidAuthToken: wrong\n")
    assert not is_other_token("ConnectionError: nobody there\n")


@pytest.mark.parametrize("content", [None, b"", b"\n\n", b"\xff\xfe no text\n"])
def test_an_error_file_of_tune_may_hold_nothing(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "error.txt"
    if content is not None:
        file.write_bytes(content)
    assert newest_error(str(file))
    assert newest_error(None) == "the worker died"


def test_the_newest_error_is_the_last_line_of_tunes_file(tmp_path: Path) -> None:
    file = tmp_path / "error.txt"
    file.write_text("Failure # 3 (occurred at ...)\nTraceback ...\n  File x\nRuntimeError: boom\n\n")
    assert newest_error(str(file)) == "RuntimeError: boom"
