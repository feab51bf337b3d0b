"""A cluster for tests of jobs: the calls of Ray's client, on jobs that run nothing."""

from typing import Any

from builders import search_spec
from ray.dashboard.modules.job.pydantic_models import JobDetails
from ray.job_submission import JobStatus

from ftae.cluster.jobs import LOG_BEGINS, Attempt, attempts, submit
from ftae.specs import SearchSpec


def cluster_spec(name: str = "small", source: str = "photos") -> SearchSpec:
    data = {"source": "image_folder", "train": source, "resolution": 16}
    settings = {"num_trials": 3, "storage": "/shared/searches"}
    changes: dict[str, Any] = {"finetune.data": data, "finetune.metrics": ["psnr"], "search": settings}
    return search_spec(name=name, **changes)


class FakeCluster:
    """Stands for JobSubmissionClient: each call of ``get_job_info`` finds the next of ``states``.

    A state is (status, exit code, log so far), or an error of the connection.
    """

    def __init__(self, *states: tuple[str, int | None, str] | Exception) -> None:
        self.jobs: dict[str, JobDetails] = {}
        self.states = list(states)
        self.log = ""

    def submit_job(self, *, submission_id: str, **sent: Any) -> str:
        if submission_id in self.jobs:
            raise RuntimeError("500: no")
        begun = 1000 * (1 + len(self.jobs))
        details = {"type": "SUBMISSION", "status": "PENDING", "start_time": begun}
        self.jobs[submission_id] = JobDetails(submission_id=submission_id, **details, **sent)
        return submission_id

    def refuse(self, **details: Any) -> str:
        raise RuntimeError("500: no")

    def list_jobs(self) -> list[JobDetails]:
        return [JobDetails(type="DRIVER", status="RUNNING", entrypoint="other"), *self.jobs.values()]

    def get_job_info(self, job: str) -> JobDetails:
        if self.states:
            now = self.states.pop(0)
            if isinstance(now, Exception):
                raise now
            status, exit_code, self.log = now
            self.end(job, status, exit_code)
        if job not in self.jobs:
            raise RuntimeError("404")
        return self.jobs[job]

    def get_job_logs(self, job: str) -> str:
        sent = self.jobs[job].entrypoint
        return f"Whatever Ray says of {job}: {sent}\n{LOG_BEGINS}\n{self.log}" if self.log else ""

    def stop_job(self, job: str) -> bool:
        return True

    def end(self, job: str, status: str, exit_code: int | None = None, message: str = "") -> None:
        update = {"status": JobStatus(status), "driver_exit_code": exit_code, "message": message}
        self.jobs[job] = self.jobs[job].model_copy(update=update)


def submitted(cluster: Any, number: int = 1, last: int = 3, resume: bool = False) -> Attempt:
    submit(cluster, cluster_spec(), number=number, resume=resume, python="python3", last=last)
    return attempts(cluster, "small")[-1]
