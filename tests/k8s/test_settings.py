"""Every setting of a submission is either used as it was given or refused in one line."""

import subprocess
import sys

import pytest

from tests.helpers import manifests as k8s
from trainer.config.operation_settings import Limits
from trainer.errors import ExitCode

GCS = ("--overlay=gcs", "--bucket=my-bucket")
DIGEST = "0" * 64


def submit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, k8s.K8S / "submit.py", *arguments],
        text=True,
        capture_output=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("arguments", "named", "remedy"),
    [
        ("--overlay=nope", "OVERLAY=nope", "cpu-smoke, gcs, multi-worker, single-node, spot"),
        ("--overlay=", "OVERLAY=", "cpu-smoke, gcs, multi-worker, single-node, spot"),
        ("--overlay=spot --component=nope", "COMPONENTS=nope", "autopilot, data-volume,"),
        ("--overlay=gcs --bucket=gs://foo", "BUCKET=gs://foo", "without gs://"),
        ("--overlay=gcs --bucket=foo/bar", "BUCKET=foo/bar", "without a path"),
        ("--overlay=multi-worker --workers=0", "WORKERS=0", "from 2 to 1000"),
        ("--overlay=multi-worker --workers=1001", "WORKERS=1001", "from 2 to 1000"),
        ("--overlay=multi-worker --workers=abc", "WORKERS=abc", "from 2 to 1000"),
        ("--overlay=spot --gpus=0", "GPUS=0", "an integer from 1"),
        ("--overlay=spot --gpus=-1", "GPUS=-1", "an integer from 1"),
        ("--overlay=spot --cpus=0", "CPUS=0", "an integer from 1"),
        ("--overlay=spot --cpus=2.5", "CPUS=2.5", "an integer from 1"),
        ("--overlay=spot --jobset=yes", "JOBSET=yes", "Use JOBSET=1"),
        ("--overlay=spot --apply=true", "APPLY=true", "Use APPLY=1"),
        ("--overlay=spot --length=500", "LENGTH=500", "--kimg=500"),
        ("--overlay=spot --image=H/x@sha256:abc", "IMAGE=H/x@sha256:abc", "64 hexadecimal digits"),
        ("--overlay=spot --image=host/Gan:1", "IMAGE=host/Gan:1", "HOST/NAME:TAG"),
        ("--overlay=spot --image=host/gan:", "IMAGE=host/gan:", "HOST/NAME:TAG"),
        ("--overlay=spot --flag=--grace_secs=x", "ARGS=--grace_secs=x", "from 1 to 3600"),
        ("--overlay=spot --flag=--grace_secs=0", "ARGS=--grace_secs=0", "from 1 to 3600"),
        ("--overlay=spot --flag=--grace_secs", "ARGS=--grace_secs=", "from 1 to 3600"),
        ("--overlay=spot --nope", "--nope", "--help"),
        (
            "--overlay=gcs --bucket=my-bucket --service_account=foo",
            "SERVICE_ACCOUNT=foo",
            "NAME@PROJECT.iam.gserviceaccount.com",
        ),
        (
            "--overlay=gcs --bucket=my-bucket --billing_project=My_Project",
            "BILLING_PROJECT=My_Project",
            "the ID of a Google Cloud project",
        ),
    ],
)
def test_an_invalid_value_is_refused_with_its_setting_and_a_remedy(arguments, named, remedy):
    done = submit(*arguments.split())
    assert done.returncode == ExitCode.USAGE
    assert done.stderr.startswith("error: ")
    assert f"{named} " in done.stderr or f"{named}. " in done.stderr
    assert remedy in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


@pytest.mark.parametrize("image", ["a b", "-x", "host/", "host//x", f"x@sha256:{DIGEST}0", "x@"])
def test_an_image_must_be_a_valid_reference(image):
    done = submit("--overlay=cpu-smoke", f"--image={image}")
    assert done.returncode == ExitCode.USAGE
    assert f"IMAGE={image} is invalid. Use HOST/NAME:TAG" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--overlay=spot", "--image=[::1]:5000/a-b/c__d:v_1"], "[::1]:5000/a-b/c__d:v_1"),
        (["--overlay=cpu-smoke", "--image=gan"], "image: gan:"),
        ([*GCS, "--service_account=1-compute@developer.gserviceaccount.com"], "1-compute@"),
        ([*GCS, "--service_account=a@b.example.com.iam.gserviceaccount.com"], "a@b.example.com"),
        ([*GCS, "--billing_project=example.com:my-project"], "value: example.com:my-project"),
        (["--overlay=gcs", "--bucket=a.b_c-1"], "RUNS: gs://a.b_c-1/runs"),
        (["--overlay=multi-worker", "--workers=03"], "completions: 3"),
        (["--overlay=spot", "--gpus=", "--workers=", "--cpus=", "--jobset=0"], "kind: Job"),
        (["--overlay=spot", "--jobset=1"], "kind: JobSet"),
    ],
)  # fmt: skip
def test_valid_values_are_used(arguments, found):
    done = submit(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"{found}" in done.stdout


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["OVERLAY=nope"], "error: OVERLAY=nope does not exist. Choose from: cpu-smoke, gcs,"),
        (["OVERLAY=a b"], "error: OVERLAY=a b does not exist. Choose from: cpu-smoke, gcs,"),
        (["COMPONENTS=gcs,spot"], "error: COMPONENTS=gcs,spot does not exist. Choose from:"),
        (["JOBSET=yes"], "error: JOBSET=yes is invalid. Use JOBSET=1, or leave it out.\n"),
        (["APPLY=yes"], "error: APPLY=yes is invalid. Use APPLY=1, or leave it out.\n"),
        (["IMAGE=a b"], "error: IMAGE=a b is invalid. Use HOST/NAME:TAG"),
        (["OVERLAY=multi-worker", "WORKERS=0"], "error: WORKERS=0 is invalid. Use an integer from"),
    ],
)
def test_make_shows_the_same_line(given, message):
    done = subprocess.run(
        ["make", "--no-print-directory", "k8s-submit", f"PYTHON={sys.executable}", *given],
        cwd=k8s.ROOT, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    first, *others = done.stderr.splitlines(keepends=True)
    assert first.startswith(message)
    assert len(others) == 1  # make's own
    assert "Error 64" in others[0]
    assert not done.stdout


# The grace period.


@pytest.mark.parametrize(
    ("flags", "secs"),
    [
        ([], 30),
        (["--flag=--grace_secs=12"], 30),
        (["--flag=--grace_secs=60"], 78),
        (["--flag=-grace_secs", "--flag=59.5"], 78),
        (["--flag=--grace_secs=20", "--flag=--seed=1", "--flag=--grace_secs=60"], 78),
    ],
)
@pytest.mark.parametrize("jobset", [[], ["--jobset"]])
def test_the_grace_period_of_a_pod_follows_that_of_the_trainer(flags, secs, jobset):
    """Otherwise the Pod is killed while the trainer uploads its last checkpoint."""
    pod = k8s.pod_of(k8s.submit("--overlay=single-node", *flags, *jobset))
    assert pod["terminationGracePeriodSeconds"] == secs


def test_the_margin_is_that_of_the_manifests():
    default = Limits().grace_secs
    for overlay in ("single-node", "spot"):
        manifests = k8s.render(f"overlays/{overlay}")
        same = k8s.submit(f"--overlay={overlay}", f"--flag=--grace_secs={default}")
        periods = [k8s.pod_of(m)["terminationGracePeriodSeconds"] for m in (manifests, same)]
        assert periods[0] == periods[1]


@pytest.mark.parametrize(("secs", "warned"), [("12", False), ("13", True), ("60", True)])
def test_a_grace_period_that_a_spot_node_does_not_give_is_warned_about(secs, warned):
    done = submit("--overlay=spot", f"--flag=--grace_secs={secs}")
    assert done.returncode == 0, done.stderr
    warning = f"warning: ARGS=--grace_secs={secs} is longer than GKE waits on a spot node"
    assert done.stderr.startswith(warning) == warned
    assert f"terminationGracePeriodSeconds: {int(secs) + 3}\n" in done.stdout
    assert (
        "spot node" not in submit("--overlay=gcs", "--bucket=abc", "--flag=--grace_secs=60").stderr
    )


# The volume of data sets.


@pytest.mark.parametrize(
    ("arguments", "mounted"),
    [
        ("--dataset=gs://my-bucket/x.zip", False),
        ("--dataset=digits", False),
        ("--dataset=cifar10", True),
        ("--dataset=/data/x.zip", True),
        ("--dataset=gs://my-bucket/x.zip --flag=--inception_path=/data/inception.h5", True),
        ("--dataset=digits --component=data-volume", True),
        ("--component=gcs --bucket=my-bucket", False),
        ("--component=gcs --bucket=my-bucket --dataset=/data/x.zip", True),
        ("--component=gcs --bucket=my-bucket --component=data-volume", True),
    ],
)
def test_the_volume_of_data_is_mounted_only_if_the_run_needs_it(arguments, mounted):
    for overlay in ("single-node", "spot"):
        manifests = k8s.submit(f"--overlay={overlay}", *arguments.split())
        container = k8s.trainer_of(manifests)
        assert ("data" in {v["name"] for v in k8s.pod_of(manifests)["volumes"]}) == mounted
        assert ("/data" in {m["mountPath"] for m in container["volumeMounts"]}) == mounted
        assert ("TRAINER_DATA_DIR" in {v["name"] for v in container["env"]}) == mounted
        assert {"runs", "tmp", "home", "shm"} <= {
            v["name"] for v in k8s.pod_of(manifests)["volumes"]
        }
