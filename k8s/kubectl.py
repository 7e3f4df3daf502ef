"""Runs kubectl: renders kustomizations and applies manifests to a cluster."""

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path


class SubmissionError(Exception):
    """An invalid setting or a failing kubectl; the message is shown to the user."""


def kustomize(folder: Path) -> str:
    """Returns the rendered kustomization of a folder.

    Raises:
      SubmissionError: If kubectl is missing or fails.
    """
    done = kubectl("kustomize", str(folder))
    if done.returncode:
        raise SubmissionError(f"kubectl kustomize: {done.stderr.strip()}")
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


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A namespace of a cluster; "" stands for what kubectl uses by default."""

    context: str = ""
    namespace: str = ""

    def describe(self) -> str:
        """Returns the context and the namespace, for the user to check."""
        context = self.context or kubectl("config", "current-context").stdout.strip()
        view = ["config", "view", "--minify", "--output=jsonpath={..namespace}"]
        given = [f"--context={self.context}"] if self.context else []
        namespace = self.namespace or kubectl(*view, *given).stdout.strip() or "default"
        if not context and "KUBERNETES_SERVICE_HOST" in os.environ:
            return "the cluster of this Pod, in the namespace of its ServiceAccount"
        return f"context {context or '(none)'}, namespace {namespace}"

    def apply(self, manifests: str, job: str) -> None:
        """Applies the manifests if the cluster accepts all of them.

        Claims that exist are left as they are: a claim cannot be changed, except in its size.

        Raises:
          SubmissionError: If a claim is missing, or an object was rejected.
        """
        manifests = self._without_existing_claims(manifests)
        tried = self._kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifests)
        if tried.returncode:
            raise SubmissionError(
                f"The cluster did not accept the manifests, and nothing was applied.\n"
                f"kubectl apply --dry-run=server: {tried.stderr.strip()}"
            )
        done = self._kubectl("apply", "-f", "-", stdin=manifests)
        print(done.stdout, end="", flush=True)
        if done.returncode:  # kubectl still applies the other objects
            raise SubmissionError(
                f"kubectl apply: {done.stderr.strip()}\n"
                "Some objects were not applied. The Job may be running; to find out: "
                f"kubectl get job {job}"
            )

    def _without_existing_claims(self, manifests: str) -> str:
        """Removes the claims that exist; claims that are used must exist or be created."""
        documents = manifests.split("\n---\n")
        for claim in sorted(set(re.findall(r"\bclaimName: (\S+)", manifests))):
            created = [text for text in documents if _is_claim(text, claim)]
            found = self._kubectl("get", "pvc", claim, "--ignore-not-found", "--output=name")
            if found.returncode:
                raise SubmissionError(f"kubectl get pvc {claim}: {found.stderr.strip()}")
            if found.stdout.strip():
                documents = [text for text in documents if text not in created]
                if created:
                    print(f"The volume {claim} exists and is used as it is.", file=sys.stderr)
            elif not created:
                raise SubmissionError(
                    f"The Job uses the volume claim {claim}, which does not exist. Create and fill "
                    "it first: see 'Fill the volume of data sets' in docs/kubernetes.md."
                )
        return "\n---\n".join(documents)

    def _kubectl(self, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        names = {"context": self.context, "namespace": self.namespace}
        flags = [f"--{name}={value}" for name, value in names.items() if value]
        return kubectl(*command, *flags, stdin=stdin)


def _is_claim(text: str, name: str) -> bool:
    """Returns whether a document is the claim of this name."""
    named = re.search(rf"^  name: {re.escape(name)}$", text, re.M)
    return bool(named and re.search(r"^kind: PersistentVolumeClaim$", text, re.M))
