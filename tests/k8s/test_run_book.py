"""The commands of docs/kubernetes.md and of a submission fit the objects that are submitted."""

import re
import shlex

import pytest

from tests.helpers import manifests as k8s
from tests.helpers.fake_kubectl import apply, fake_cluster

DOCUMENT = (k8s.ROOT / "docs/kubernetes.md").read_text(encoding="utf-8")
INSTANCE = "app.kubernetes.io/instance"


def test_the_documented_form_for_autopilot_needs_no_volume_of_data(tmp_path):
    """The cluster has no claim at all; a zonal one would tie the Pod to its zone."""
    (block,) = re.findall(r"^On Autopilot, .*?```\n(.*?)```", DOCUMENT, re.S | re.M)
    words = [word.partition("=") for word in shlex.split(block.replace("\\\n", ""))]
    settings = {name: value for name, _, value in words}
    overlay = settings["OVERLAY"]
    given = [f"--component={name}" for name in settings["COMPONENTS"].split()]
    given += ["--bucket=my-bucket", f"--dataset={settings['DATASET']}"]
    script = '[ "$1 $2" = "apply -f" ] && cat > "${0%/*}/applied"'
    done = apply(fake_cluster(tmp_path, script), *given, overlay=overlay)
    assert done.returncode == 0, done.stderr
    applied = (tmp_path / "applied").read_text()
    assert "cloud.google.com/gke-accelerator: nvidia-l4" in applied
    assert "DATASET: gs://my-bucket/data/pictures.zip\n" in applied
    assert "/data\n" not in applied
    assert "claimName" not in applied


def test_a_missing_volume_of_data_is_named_with_the_data_set(tmp_path):
    done = apply(fake_cluster(tmp_path, ""), "--dataset=mnist", overlay="single-node")
    assert done.stderr.startswith("error: DATASET=mnist: the Job mounts the volume gan-data, which")
    assert done.stderr.count("\n") == 1


def removed_kinds(*, jobset: bool) -> set[str]:
    """Returns the kinds that the documented command removes with a Job or a JobSet."""
    lists = re.findall(
        r"^kubectl delete (\S+,\S+) -l app.kubernetes.io/instance=JOB", DOCUMENT, re.M
    )
    (kinds,) = (names.split(",") for names in lists if ("jobset" in names.split(",")) == jobset)
    return set(kinds)


@pytest.mark.parametrize("jobset", [False, True])
def test_the_documented_removal_deletes_all_that_belongs_to_a_job(jobset):
    """Without its ConfigMap, a Job or JobSet that remained could start no Pod."""
    given = ["--overlay=multi-worker", "--component=prometheus", *(["--jobset"] if jobset else [])]
    manifests = k8s.submit(*given)
    (job,) = (item for item in manifests if item["kind"] in ("Job", "JobSet"))
    name = job["metadata"]["name"]
    own = [item for item in manifests if item["metadata"].get("labels", {}).get(INSTANCE) == name]
    assert {item["kind"].lower() for item in own} == removed_kinds(jobset=jobset)
    for item in manifests:  # the others are shared by all runs
        assert (name in item["metadata"]["name"] or item["kind"] == "ConfigMap") == (item in own)


def test_a_cluster_without_jobset_knows_all_kinds_of_the_plain_removal():
    """kubectl refuses a list with an unknown kind as a whole, so there are two commands."""
    assert removed_kinds(jobset=False) == {"job", "configmap", "networkpolicy"}


def test_status_is_documented_for_volumes_and_buckets():
    roots = {
        k8s.environment_of(k8s.submit(*given))["RUNS"]
        for given in (["--overlay=single-node"], ["--overlay=gcs", "--bucket=my-bucket"])
    }
    expected = {f"--run_dir={root.replace('my-bucket', 'BUCKET')}/NAME" for root in roots}
    for section in ("## 7. Stop, resume and watch a run", "## Run book"):
        text = DOCUMENT.partition(f"\n{section}\n")[2].partition("\n## ")[0]
        commands = re.findall(r"^kubectl exec POD -- python -m trainer status (\S+)", text, re.M)
        assert set(commands) == expected


@pytest.mark.parametrize(("overlay", "more", "pods"), [
    ("cpu-smoke", [], 1), ("multi-worker", ["--workers=8"], 8), ("multi-worker", [], 2),
])  # fmt: skip
def test_the_printed_command_follows_the_logs_of_all_pods(tmp_path, overlay, more, pods):
    """By default kubectl refuses to follow more than 5. Pods that were replaced count, too."""
    done = apply(fake_cluster(tmp_path, ""), *more, overlay=overlay)
    assert done.returncode == 0, done.stderr
    words = shlex.split(done.stdout.partition("To follow the log: kubectl ")[2])
    (most,) = (word.partition("=")[2] for word in words if word.startswith("--max-log-requests="))
    assert int(most) >= 2 * pods
    assert "--follow" in words


def test_lines_are_wrapped():
    """Tables and blocks of code are exempt."""
    for name in ("kubernetes", "buckets"):
        text = (k8s.ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
        prose = re.sub(r"```.*?```", "", text, flags=re.S).splitlines()
        assert [line for line in prose if len(line) > 110 and not line.startswith("|")] == []
    for path in k8s.K8S.rglob("*.yaml"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if len(line) > 100 and "#" in line] == [], path
