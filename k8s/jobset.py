"""The JobSet around a Job, which recreates it after each failure."""

import json
import re
import textwrap
from collections.abc import Iterator

from edits import Json, replace

# Exit codes of the trainer that a retry cannot change. With 75 another job holds the run: the Pods
# of this one have all ended before they are started again.
FINAL_CODES = [64, 65, 70, 73, 75]
JOBSET_POLICY = {
    "maxRestarts": 0,  # of the restarts that count, which are none
    "restartStrategy": "BlockingRecreate",  # start no Pod before all old ones have ended
    "rules": [
        {
            "name": "final",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy", "DeadlineExceeded"],
        },
        {"name": "restart", "action": "RestartJobSetAndIgnoreMaxRestarts"},
    ],
}
REPLICATED_JOB = "w"  # a JobSet names its Job JOBSET-w-0


def job_edits(*, with_kueue: bool) -> Iterator[Json]:
    """Yields the edits of a Job that a JobSet recreates after each failure.

    A recreated Job starts without a back-off, so the Job itself must not retry.
    """
    final = {
        "action": "FailJob",
        "onExitCodes": {"containerName": "trainer", "operator": "In", "values": FINAL_CODES},
    }
    yield replace("/spec/backoffLimit", 0)
    yield replace("/spec/podFailurePolicy/rules", [final])
    yield {"op": "remove", "path": "/spec/ttlSecondsAfterFinished"}
    if with_kueue:
        yield {"op": "remove", "path": "/spec/suspend"}  # Kueue suspends the JobSet


def wrap(manifests: str, *, suspend: bool) -> str:
    """Returns the manifests with the Job as the only Job of a JobSet.

    The JobSet fails with the exit codes that a retry cannot change and at the deadline. It restarts
    after every other failure; the trainer limits the number of starts without progress.
    """
    documents = []
    for text in manifests.split("\n---\n"):
        if re.search(r"^kind: Job$", text, re.M):
            head, _, job_spec = text.partition("\nspec:\n")
            metadata = head[head.index("metadata:") :]
            labels = {"app.kubernetes.io/name": "gan-trainer"}
            text = "\n".join([
                f"apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\n{metadata}\nspec:",
                *(["  suspend: true"] if suspend else []),
                "  ttlSecondsAfterFinished: 604800",
                f"  network: {json.dumps({'enableDNSHostnames': False})}",
                f"  failurePolicy: {json.dumps(JOBSET_POLICY)}",
                "  replicatedJobs:",
                f"  - name: {REPLICATED_JOB}",
                "    replicas: 1",
                "    template:",
                f"      metadata: {json.dumps({'labels': labels})}",
                "      spec:",
                textwrap.indent(job_spec, "      "),
            ])  # fmt: skip
        documents.append(text)
    return "\n---\n".join(documents)
