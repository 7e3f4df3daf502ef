"""Applies manifests to one context and namespace of kubectl. submit.py uses it."""

import re
import shlex
import subprocess


class SubmissionError(Exception):
    """An invalid setting or a failing kubectl; the message is shown to the user."""


class Cluster:
    """The cluster and the namespace to which manifests are applied."""

    def __init__(self, context: str, namespace: str) -> None:
        """Chooses a context and a namespace of kubectl; "" for the current ones.

        Every later call names both, so that it reaches the same cluster even if another program
        changes the current context in the meantime.

        Raises:
          SubmissionError: If the context does not exist, or kubectl is missing.
        """
        self.context = context or kubectl("config", "current-context").stdout.strip()
        self.flags = [f"--context={self.context}"]
        view = kubectl("config", "view", "--minify", "-o", "jsonpath={..namespace}", *self.flags)
        if view.returncode:
            raise SubmissionError(
                f"CONTEXT={self.context} cannot be used ({view.stderr.strip()}). Use a name that "
                "`kubectl config get-contexts` lists."
            )
        self.namespace = namespace or view.stdout.strip() or "default"
        self.flags.append(f"--namespace={self.namespace}")

    def apply(self, manifests: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Applies manifests, with more flags."""
        return kubectl("apply", *more, "-f", "-", *self.flags, stdin=manifests)

    def has_claim(self, name: str) -> bool:
        """Returns whether the namespace has a claim.

        Raises:
          SubmissionError: If kubectl fails.
        """
        get = ("get", "pvc", name, "--ignore-not-found", "-o", "name")
        return bool(checked(*get, *self.flags).strip())

    def command(self, verb: str, rest: str) -> str:
        """Returns a kubectl command for the user."""
        return " ".join(["kubectl", shlex.join(self.flags), verb, rest])


def apply(manifests: str, settings: dict[str, str], cluster: Cluster) -> None:
    """Applies the manifests to the cluster, after the cluster has checked all of them.

    Args:
      manifests: The manifests of one run.
      settings: The data of its ConfigMap.
      cluster: The cluster and the namespace.

    Raises:
      SubmissionError: If an object was rejected.
    """
    print(f"Context: {cluster.context}, namespace: {cluster.namespace}", flush=True)
    manifests = without_existing_claims(manifests, settings["DATASET"], cluster)
    check = cluster.apply(manifests, "--dry-run=server")
    if check.returncode:
        raise SubmissionError(
            f"The cluster rejects the manifests: {check.stderr.strip()}\nNothing was applied."
        )
    done = cluster.apply(manifests)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SubmissionError(
            f"kubectl apply: {done.stderr.strip()}\n"
            "Some objects were not applied. The Job may be running; to find out: "
            + cluster.command("get", f"pods -l app.kubernetes.io/instance={settings['JOB']}")
        )


def without_existing_claims(manifests: str, dataset: str, cluster: Cluster) -> str:
    """Returns the manifests without claims that exist: an existing claim may have been resized.

    Raises:
      SubmissionError: If the Job uses the volume of data sets, and it does not exist.
    """
    documents = []
    for text in manifests.split("\n---\n"):
        if re.search(r"^kind: PersistentVolumeClaim$", text, re.M):
            found = re.search(r"^  name: (\S+)$", text, re.M)
            name = found[1] if found else ""
            if cluster.has_claim(name):
                print(f"Using the existing claim {name}", flush=True)
                continue
        documents.append(text)
    uses_data = "claimName: gan-data\n" in manifests  # created and filled with k8s/data
    if uses_data and not cluster.has_claim("gan-data"):
        raise SubmissionError(
            f"DATASET={dataset}: the Job mounts the volume gan-data, which does not exist. Create "
            "and fill it first (see 'Fill the volume of data sets' in docs/kubernetes.md), or use "
            "data in a bucket: DATASET=gs://BUCKET/PATH."
        )
    return "\n---\n".join(documents)


def checked(*command: str) -> str:
    """Returns the output of kubectl.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    done = kubectl(*command)
    if done.returncode:
        raise SubmissionError(f"kubectl {' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def kubectl(*command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs kubectl and captures its output.

    Raises:
      SubmissionError: If kubectl is not installed.
    """
    try:
        return subprocess.run(["kubectl", *command], input=stdin, text=True, capture_output=True)
    except FileNotFoundError:
        raise SubmissionError(
            "kubectl was not found on PATH. Install it: https://kubernetes.io/docs/tasks/tools"
        ) from None
