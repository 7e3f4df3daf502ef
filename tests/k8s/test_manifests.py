"""The manifests are valid for Kubernetes and consistent with the trainer and each other."""

import functools
import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from k8s.manifests import Parts, subfolders
from tests.helpers import manifests as k8s
from trainer import __version__
from trainer.commands import train
from trainer.errors import ExitCode
from trainer.machine.signals import GRACE_SECS

VERSIONS = ["1.31", "1.34", "1.37"]
GPU = "nvidia.com/gpu"
SUBMITTED = {
    "submitted single-node": ["--overlay=single-node", "--gpus=4", "--dataset=mnist"],
    "submitted multi-worker": [
        "--overlay=multi-worker", "--gpus=2", "--workers=4", "--recipe=cgan", "--dataset=mnist",
        "--component=kueue", "--component=prometheus", "--image=host:5000/a/gan-trainer:0.2.0",
    ],
    "submitted gcs": ["--overlay=gcs", "--bucket=b", "--service_account=a@b", "--gpu_type=x"],
    "submitted workers in a bucket": [
        "--overlay=multi-worker", "--component=gcs", "--component=spot", "--component=autopilot",
        "--workers=4", "--bucket=b", "--gpu_resource=nvidia.com/mig-1g.10gb", "--cpus=2.5",
        "--memory=24Gi", "--billing_project=p",
    ],
}  # fmt: skip
RUNS = [*k8s.OVERLAYS, *SUBMITTED]

# The components that combine. PLATFORMS exclude each other; ANYWHERE can be added to all of them.
ANYWHERE = ("do-not-disrupt", "kueue", "priority", "prometheus", "pull-secret", "runtime-class")
PLATFORMS: dict[tuple[str, ...], list[tuple[str, ...]]] = {
    (): [(), ("spot",)],
    ("gke",): [(), ("spot",)],
    ("gke", "workload-identity"): [(), ("spot",)],
    ("autopilot",): [(), ("spot",)],
    ("openshift",): [()],
}
FOR_GPUS = {"gke", "autopilot", "runtime-class"}


def combinations() -> list[Parts]:
    """Returns the sensible combinations: each with all of ANYWHERE, and each of those alone."""
    found = []
    overlays = ("cpu-smoke", "single-node", "multi-worker")
    for overlay, storage, platform in itertools.product(overlays, [(), ("gcs",)], PLATFORMS):
        for nodes in PLATFORMS[platform]:
            added = {*storage, *platform, *nodes, *ANYWHERE}
            if overlay == "cpu-smoke":
                added -= {"runtime-class"}
            if overlay != "cpu-smoke" or not added & FOR_GPUS:
                found.append(Parts(overlay, tuple(sorted(added))))
    return [*found, *(Parts("single-node", (name,)) for name in ANYWHERE)]


COMBINATIONS = combinations()
TOGETHER = 12  # combinations that one call of kubectl renders

# A schema of the PodMonitor of the Prometheus Operator, limited to the fields used here.
POD_MONITOR = yaml.safe_load("""
type: object
additionalProperties: false
required: [apiVersion, kind, metadata, spec]
properties:
  apiVersion: {const: monitoring.coreos.com/v1}
  kind: {const: PodMonitor}
  metadata: {type: object, required: [name]}
  spec:
    type: object
    additionalProperties: false
    required: [selector, podMetricsEndpoints]
    properties:
      podTargetLabels: {type: array, items: {type: string}}
      selector:
        type: object
        additionalProperties: false
        properties:
          matchLabels: {type: object, additionalProperties: {type: string}}
      podMetricsEndpoints:
        type: array
        minItems: 1
        items:
          type: object
          additionalProperties: false
          properties:
            port: {type: string}
            interval: {type: string, pattern: "^[0-9]+(ms|s|m|h)$"}
""")


def make(name: str) -> k8s.Manifests:
    return k8s.submit(*SUBMITTED[name]) if name in SUBMITTED else k8s.render(f"overlays/{name}")


@pytest.fixture(scope="module", params=RUNS)
def manifests(request) -> k8s.Manifests:
    return make(request.param)


def validate(item: dict, version: str) -> None:
    """Validates an object against its schema. Unknown fields and kinds are errors."""
    if item["kind"] == "PodMonitor":
        jsonschema.validate(item, POD_MONITOR)
    else:
        validate_text(json.dumps(item, sort_keys=True), version)


@functools.cache
def validate_text(text: str, version: str) -> None:
    """Validates an object; cached, because overlays share objects."""
    assert kubernetes_validate.validate(json.loads(text), version, strict=True) == version


def test_manifests_match_the_schemas(manifests):
    for item, version in itertools.product(manifests, VERSIONS):
        validate(item, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "components"), [("data", ()), ("results", ()), ("data", ("openshift", "pull-secret"))]
)
def test_volume_pods_are_valid_secure_and_without_network(name, components, version):
    manifests = k8s.render(name, *components)
    for item in manifests:
        validate(item, version)
    pod, policy = k8s.one_of(manifests, "Pod"), k8s.one_of(manifests, "NetworkPolicy")
    check_security(pod["spec"], fixed_user="openshift" not in components)
    assert ("imagePullSecrets" in pod["spec"]) == ("pull-secret" in components)
    assert pod["spec"]["containers"][0]["image"] == f"gan-trainer-cpu:{__version__}"
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    assert policy["spec"]["ingress"] == policy["spec"]["egress"] == []


def test_results_pod_mounts_the_volumes_of_the_overlays():
    """The Pod mounts the overlays' claim; the documentation shows how to choose another."""
    pod = k8s.one_of(k8s.render("results"), "Pod")["spec"]
    (volume,), (mount,) = pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert volume["persistentVolumeClaim"] == {"claimName": "gan-runs"}
    assert volume["name"] == mount["name"]
    assert "readOnly" not in mount
    documents = (k8s.ROOT / "docs/kubernetes.md").read_text()
    claims = set()
    for name in k8s.OVERLAYS:
        manifests = make(name)
        for claim in k8s.all_of(manifests, "PersistentVolumeClaim"):
            claims.add(claim["metadata"]["name"])
            assert claim["metadata"]["labels"]["app.kubernetes.io/component"] == "runs"
            assert k8s.environment_of(manifests)["RUNS"] == mount["mountPath"]
    assert claims == {"gan-runs", "gan-runs-smoke", "gan-runs-shared"}
    assert all(f"`{claim}`" in documents for claim in claims)
    assert "s,claimName: gan-runs,claimName: " in documents


def test_documentation_names_the_service_accounts_of_gcs():
    """One is granted access itself; the other acts as a Google service account."""
    documents = (k8s.ROOT / "docs/kubernetes.md").read_text()
    account = k8s.one_of(make("gcs"), "ServiceAccount")
    assert "annotations" not in account["metadata"]
    assert f"/subject/ns/gan/sa/{account['metadata']['name']}" in documents
    acting = k8s.one_of(make("submitted gcs"), "ServiceAccount")
    assert acting["metadata"]["annotations"] == {"iam.gke.io/gcp-service-account": "a@b"}
    assert f".svc.id.goog[gan/{acting['metadata']['name']}]" in documents


def test_overlays_define_shared_objects_identically():
    """Overlays are applied to the same namespace, so equal names must mean equal objects."""
    seen: dict[tuple[str, str], dict] = {}
    for manifests in map(k8s.render, ["data", "results", *(f"overlays/{n}" for n in k8s.OVERLAYS)]):
        for item in manifests:
            if item["kind"] not in ("Job", "Pod", "ConfigMap"):  # these belong to a single run
                name = item["kind"], item["metadata"]["name"]
                assert seen.setdefault(name, item) == item


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "podFailurePolicy", "rules", 0, "onPodConditions", 0, "status"], True),
        (["spec", "template", "spec", "terminationGracePeriod"], 30),
    ],
)
def test_schemas_are_strict(path, value):
    job = k8s.one_of(make("cpu-smoke"), "Job")
    validate(job, VERSIONS[0])
    job = json.loads(json.dumps(job))
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(job, VERSIONS[0])


def test_names_are_unique(manifests):
    names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
    assert len(set(names)) == len(names)


# The failure policy.


def test_failure_policy_matches_the_trainers_exit_codes(manifests):
    job = k8s.one_of(manifests, "Job")["spec"]
    by_action: dict[str, set[int]] = {}
    for rule in job["podFailurePolicy"]["rules"]:
        if codes := rule.get("onExitCodes"):
            assert codes["operator"] == "In"
            assert codes["containerName"] == k8s.trainer_of(manifests)["name"]
            by_action.setdefault(rule["action"], set()).update(codes["values"])
    assert by_action == {
        "Ignore": {ExitCode.STOPPED},
        "FailJob": {ExitCode.USAGE, ExitCode.DATA, ExitCode.DIVERGED, ExitCode.CHECKPOINT},
    }
    retried = set(ExitCode) - set().union(*by_action.values()) - {ExitCode.OK}
    without_a_save = {ExitCode.INTERRUPTED, ExitCode.TERMINATED}
    assert retried == {ExitCode.CRASH, ExitCode.BUSY} | without_a_save
    assert job["backoffLimit"] == 4 * job.get("completions", 1)


def test_evicted_pods_do_not_count_as_failures(manifests):
    job = k8s.one_of(manifests, "Job")["spec"]
    first = job["podFailurePolicy"]["rules"][0]
    assert first["action"] == "Ignore"
    assert first["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]


def test_job_has_a_deadline_and_replaces_failed_pods(manifests):
    job = k8s.one_of(manifests, "Job")["spec"]
    assert k8s.pod_of(manifests)["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"
    assert job["activeDeadlineSeconds"] > 0
    assert "backoffLimitPerIndex" not in job


def test_grace_period_exceeds_the_trainers_and_fits_spot_nodes(manifests):
    pod = k8s.pod_of(manifests)
    assert pod["terminationGracePeriodSeconds"] >= GRACE_SECS + 3
    if "cloud.google.com/gke-spot" in pod["nodeSelector"]:
        assert pod["terminationGracePeriodSeconds"] <= 15
        assert any(t["key"] == "cloud.google.com/gke-spot" for t in pod["tolerations"])


# Several machines.


def test_worker_addresses_match_the_headless_service(manifests):
    job = k8s.one_of(manifests, "Job")
    spec, pod = job["spec"], k8s.pod_of(manifests)
    workers = [a for a in k8s.arguments_of(manifests) if a.startswith("--workers=")]
    if "completionMode" not in spec:
        assert not workers
        assert "subdomain" not in pod
        assert "completions" not in spec
        return
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] >= 2
    service = k8s.one_of(manifests, "Service")
    assert service["metadata"]["name"] == pod["subdomain"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (port,) = service["spec"]["ports"]
    ports = {port["name"]: port["containerPort"] for port in k8s.trainer_of(manifests)["ports"]}
    assert ports[port["name"]] == port["port"]
    name = job["metadata"]["name"]
    hosts = [f"{name}-{i}.{pod['subdomain']}:{port['port']}" for i in range(spec["completions"])]
    assert workers == [f"--workers={','.join(hosts)}"]
    assert len(f"{name}-{spec['completions'] - 1}") <= 63, "longer than a host name may be"
    modes = [c["spec"]["accessModes"] for c in k8s.all_of(manifests, "PersistentVolumeClaim")]
    in_bucket = k8s.environment_of(manifests)["RUNS"].startswith("gs://")
    assert modes == ([] if in_bucket else [["ReadWriteMany"]])


def test_selectors_match_labels(manifests):
    job = k8s.one_of(manifests, "Job")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/instance"] == job["metadata"]["name"]
    for item in manifests:
        spec = item.get("spec", {})
        if item["kind"] == "Service":
            assert spec["selector"].items() <= labels.items()
        elif item["kind"] == "PodMonitor":
            assert spec["selector"]["matchLabels"].items() <= labels.items()
            names = {port["name"] for port in k8s.trainer_of(manifests)["ports"]}
            assert {end["port"] for end in spec["podMetricsEndpoints"]} <= names
        elif item["kind"] == "NetworkPolicy":
            assert spec["podSelector"]["matchLabels"].items() <= labels.items()


def test_network_policy_admits_only_workers_of_the_same_job(manifests):
    """Prometheus is allowed as well if its component is used."""
    name = k8s.one_of(manifests, "Job")["metadata"]["name"]
    for policy in k8s.all_of(manifests, "NetworkPolicy"):
        assert "Ingress" in policy["spec"]["policyTypes"]
        for rule in policy["spec"]["ingress"]:
            for source in rule["from"]:
                if "namespaceSelector" in source:
                    port = f"--metrics_port={rule['ports'][0]['port']}"
                    assert port in k8s.arguments_of(manifests)
                else:
                    labels = source["podSelector"]["matchLabels"]
                    assert labels == {"app.kubernetes.io/instance": name}
    (policy,) = (
        item
        for item in k8s.all_of(manifests, "NetworkPolicy")
        if item["metadata"]["name"] == "gan-trainer"
    )
    assert policy["spec"]["ingress"] == []
    anywhere = {p["port"] for r in policy["spec"]["egress"] if "to" not in r for p in r["ports"]}
    dns = {53, 5353} if on_openshift(manifests) else {53}
    assert anywhere == {443, *dns}
    blocks = [to["ipBlock"]["cidr"] for r in policy["spec"]["egress"] for to in r.get("to", [])]
    assert "169.254.169.254/32" in blocks


# The Pod.


def on_openshift(manifests: k8s.Manifests) -> bool:
    return "runAsUser" not in k8s.pod_of(manifests)["securityContext"]


def check_security(pod: dict, fixed_user: bool = True) -> None:
    """Checks the requirements of the Pod Security Standard `restricted`, and more."""
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod.keys()
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    users = {context.get(name) for name in ("runAsUser", "runAsGroup", "fsGroup")}
    assert users == {10001 if fixed_user else None}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in [*pod["containers"], *pod.get("initContainers", [])]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys()
        for name, limit in resources["limits"].items():
            assert size(resources["requests"].get(name, limit)) <= size(limit), name
        assert {"cpu", "memory"} <= resources["limits"].keys()


def size(quantity: str | int) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(m|Mi|Gi)?", str(quantity)).groups()
    return float(number) * {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}.get(unit, 1)


def test_pod_meets_the_security_requirements(manifests):
    pod = k8s.pod_of(manifests)
    check_security(pod, fixed_user=not on_openshift(manifests))
    account = k8s.one_of(manifests, "ServiceAccount")
    assert account["metadata"]["name"] == pod["serviceAccountName"]
    assert account["automountServiceAccountToken"] is False


def test_folders_that_the_trainer_writes_are_writable(manifests):
    pod, container = k8s.pod_of(manifests), k8s.trainer_of(manifests)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {mount["name"] for mount in mounts.values()} == volumes.keys()
    for volume in volumes.values():
        if "emptyDir" in volume:
            assert "sizeLimit" in volume["emptyDir"], volume
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    shared = volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["sizeLimit"]
    limits = container["resources"]["limits"]
    assert size(shared) <= size(limits["memory"]) / 4
    empty_dirs = [v["emptyDir"] for v in volumes.values() if "emptyDir" in v]
    disk_bytes = sum(size(v["sizeLimit"]) for v in empty_dirs if "medium" not in v)
    assert disk_bytes <= 1.1 * size(limits["ephemeral-storage"])

    environment = k8s.environment_of(manifests)
    written = {environment["HOME"], environment["KERAS_HOME"], "/tmp"}
    if GPU in limits:
        # With the runs, so that it survives the Pod if they do.
        assert environment["CUDA_CACHE_PATH"].startswith(mounts_of_runs(mounts))
        written.add(environment["CUDA_CACHE_PATH"])
        assert environment["CUDA_CACHE_PATH"].startswith("/runs/"), "it must outlive the Pod"
    for argument in k8s.arguments_of(manifests):
        name, _, value = argument.partition("=")
        if name in ("--run_dir", "--heartbeat", "--scratch_dir") and not value.startswith("gs://"):
            written.add(value)
    for path in written:
        above = [str(p) for p in (Path(path), *Path(path).parents) if str(p) in mounts]
        assert above, path
        assert not mounts[above[0]].get("readOnly"), path


def mounts_of_runs(mounts: dict[str, dict]) -> str:
    (path,) = (path for path, mount in mounts.items() if mount["name"] == "runs")
    return f"{path}/"


def test_run_directory_is_on_a_persistent_volume(manifests):
    run_dir = next(a for a in k8s.arguments_of(manifests) if a.startswith("--run_dir="))
    if run_dir.startswith("--run_dir=gs://"):
        return
    mounts = {m["name"]: m["mountPath"] for m in k8s.trainer_of(manifests)["volumeMounts"]}
    claims = {claim["metadata"]["name"] for claim in k8s.all_of(manifests, "PersistentVolumeClaim")}
    (folder,) = (
        mounts[volume["name"]]
        for volume in k8s.pod_of(manifests)["volumes"]
        if volume.get("persistentVolumeClaim", {}).get("claimName") in claims
    )
    assert run_dir.startswith(f"--run_dir={folder}/")


def test_each_overlay_provides_its_data(manifests):
    environment = k8s.environment_of(manifests)
    volumes = {v["name"]: v for v in k8s.pod_of(manifests)["volumes"]}
    mounts = {m["mountPath"]: m for m in k8s.trainer_of(manifests)["volumeMounts"]}
    if folder := environment.get("TRAINER_DATA_DIR"):
        claim = volumes[mounts[folder]["name"]]["persistentVolumeClaim"]["claimName"]
        assert mounts[folder]["readOnly"] is True
        (data_claim,) = k8s.all_of(k8s.render("data"), "PersistentVolumeClaim")
        assert data_claim["metadata"]["name"] == claim
    elif not environment["DATASET"].startswith("gs://"):
        # Included in the image, or downloaded to a writable folder.
        assert environment["DATASET"] in ("digits", "mnist", "fashion_mnist", "cifar10")


def test_images_have_the_current_version(manifests):
    makefile = (k8s.ROOT / "Makefile").read_text()
    name, tag = k8s.trainer_of(manifests)["image"].split("/")[-1].rsplit(":", 1)
    assert tag == __version__
    assert f",{name}:$(VERSION))" in makefile
    assert (name == "gan-trainer") == bool(gpus_of(manifests))


def gpus_of(manifests: k8s.Manifests) -> dict[str, int]:
    """Returns the numbers of GPUs of a Pod by the names of their resources."""
    limits = k8s.trainer_of(manifests)["resources"]["limits"]
    return {name: number for name, number in limits.items() if "/" in name}


def test_gpu_requests_flags_and_tolerations_agree(manifests):
    container, arguments = k8s.trainer_of(manifests), k8s.arguments_of(manifests)
    gpus = gpus_of(manifests)
    assert not gpus.keys() & container["resources"]["requests"].keys()
    assert ("--devices=gpu" in arguments) == bool(gpus)
    tolerated = {t["key"] for t in k8s.pod_of(manifests)["tolerations"]}
    assert gpus.keys() <= tolerated
    assert (GPU in tolerated) == bool(gpus)


def test_resources_fit_small_nodes(manifests):
    """At most 3 CPUs and 12 GiB per GPU, and as much memory as requested: no eviction for it."""
    resources = k8s.trainer_of(manifests)["resources"]
    if not (gpus := sum(gpus_of(manifests).values())):
        return
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    if "/mig-" not in "".join(gpus_of(manifests)):  # given there
        assert size(resources["requests"]["cpu"]) == 3 * gpus
        assert size(resources["requests"]["memory"]) == 12 * gpus * 2**30


def test_batch_size_fits_the_replicas(manifests, capsys):
    pods = k8s.one_of(manifests, "Job")["spec"].get("parallelism", 1)
    replicas = pods * max(1, sum(gpus_of(manifests).values()))
    assert resolved(manifests, capsys)["batch_size"] % replicas == 0


# The trainer.


def resolved(manifests: k8s.Manifests, capsys) -> dict:
    """Returns the configuration that results from the container's arguments."""
    command, *arguments = k8s.arguments_of(manifests)
    assert command == "train"
    train.main([*arguments, "--dry_run"], lambda: False)
    return json.loads(capsys.readouterr().out)


def test_arguments_are_complete_and_unique(manifests):
    for argument in k8s.arguments_of(manifests):
        assert "$(" not in argument
    names = [a.partition("=")[0] for a in k8s.arguments_of(manifests)]
    repeated = {name for name in names if names.count(name) > 1}
    assert repeated <= {"--checkpoint_every_kimg"}, "cpu-smoke and spot set it; the last one wins"


def test_trainer_accepts_the_arguments(manifests, capsys):
    config = resolved(manifests, capsys)
    environment = k8s.environment_of(manifests)
    for name in ("RECIPE", "DATASET"):
        assert config[name.lower()] == environment[name]


def test_arguments_use_every_setting(manifests):
    """`args` use each setting of the ConfigMap, except JOB, which makes its name unique."""
    data = k8s.one_of(manifests, "ConfigMap")["data"]
    used = set(re.findall(r"\$\((\w+)\)", " ".join(k8s.trainer_of(manifests)["args"])))
    assert used == data.keys() - {"JOB"}


def test_entry_point_is_the_trainer(manifests):
    assert "command" not in k8s.trainer_of(manifests)
    for dockerfile in ("Dockerfile", "Dockerfile.cpu"):
        assert k8s.entry_point(dockerfile) == ["python", "-m", "trainer"]


def test_probes_read_the_trainers_heartbeat(manifests):
    container = k8s.trainer_of(manifests)
    assert "readinessProbe" not in container
    (heartbeat,) = (a for a in k8s.arguments_of(manifests) if a.startswith("--heartbeat="))
    for name in ("startupProbe", "livenessProbe"):
        probe = container[name]
        assert probe["exec"]["command"][:5] == ["python", "-m", "trainer", "doctor", "--liveness"]
        assert heartbeat in probe["exec"]["command"]
        assert probe["timeoutSeconds"] >= 10, "the start of Python takes seconds"
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_liveness_probe_fails_without_and_succeeds_with_a_heartbeat(tmp_path):
    command = k8s.trainer_of(make("cpu-smoke"))["livenessProbe"]["exec"]["command"]
    timeout = k8s.trainer_of(make("cpu-smoke"))["livenessProbe"]["timeoutSeconds"]
    heartbeat = tmp_path / "heartbeat"
    command = [text.replace("/tmp/heartbeat", str(heartbeat)) for text in command]
    command[0] = sys.executable

    def probe() -> int:
        done = subprocess.run(command, cwd=k8s.ROOT, capture_output=True, timeout=timeout)
        assert b"is not a flag" not in done.stderr, done.stderr
        return done.returncode

    assert probe() != 0
    heartbeat.touch()
    assert probe() == 0


# Components and submissions.


@functools.cache
def rendered(first: int) -> list[k8s.Manifests]:
    """Renders TOGETHER combinations, beginning with `first`."""
    parts = COMBINATIONS[first : first + TOGETHER]
    return k8s.render_together([(f"overlays/{p.overlay}", tuple(p.ordered())) for p in parts])


def checks() -> list[Callable[[k8s.Manifests], None]]:
    """Returns the tests above that apply to any manifests of a run."""
    tests = [item for name, item in globals().items() if name.startswith("test_")]
    return [test for test in tests if list(inspect.signature(test).parameters) == ["manifests"]]


@pytest.mark.parametrize(
    "index", range(len(COMBINATIONS)), ids=[" ".join([p.overlay, *p.added]) for p in COMBINATIONS]
)
def test_components_combine(index):
    manifests = rendered(index - index % TOGETHER)[index % TOGETHER]
    for check in checks():
        check(manifests)


def test_every_component_is_combined():
    combined = {name for parts in COMBINATIONS for name in parts.components}
    assert combined == set(subfolders("components"))
    assert len(checks()) > 15


def test_kueue_component_suspends_the_job():
    job = k8s.one_of(k8s.render("overlays/multi-worker", "kueue"), "Job")
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gan-queue"
    assert "suspend" not in k8s.one_of(make("multi-worker"), "Job")["spec"]


def test_prometheus_component_keeps_the_worker_port():
    manifests = k8s.render("overlays/multi-worker", "prometheus")
    ports = {port["name"] for port in k8s.trainer_of(manifests)["ports"]}
    assert ports == {"workers", "metrics"}


@pytest.mark.parametrize(
    ("overlay", "given", "label"),
    [
        ("single-node", "NVIDIA-L4", {"nvidia.com/gpu.product": "NVIDIA-L4"}),
        ("spot", "nvidia-a100-80gb", {"cloud.google.com/gke-accelerator": "nvidia-a100-80gb"}),
        (
            "single-node",
            "cloud.google.com/gke-accelerator=nvidia-l4",
            {"cloud.google.com/gke-accelerator": "nvidia-l4"},
        ),
        ("gcs", "gpu=big", {"gpu": "big"}),
    ],
)
def test_gpu_type_sets_the_node_selector(overlay, given, label):
    more = ["--bucket=b"] if overlay == "gcs" else []
    manifests = k8s.submit(f"--overlay={overlay}", f"--gpu_type={given}", *more)
    selector = k8s.pod_of(manifests)["nodeSelector"]
    kinds = {"nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "gpu"}
    assert {name: selector[name] for name in kinds & selector.keys()} == label


class FakeCluster:
    """A kubectl that renders, and records what would be sent to a cluster.

    Attributes:
      applied: the file of the manifests that were applied.
    """

    def __init__(self, folder: Path, *claims: str, refuses: str = "", fails: str = "") -> None:
        """Creates the program `kubectl` in a folder.

        Args:
          folder: The folder.
          *claims: The claims that exist.
          refuses: What the cluster answers to a dry run; "" for acceptance.
          fails: What the cluster answers when objects are applied; "" for success.
        """
        self.applied, self._folder = folder / "applied", folder
        exists = "|".join(claims) or "-"
        refusal = f"echo '{refuses}' >&2; exit 1" if refuses else "exit 0"
        failure = f"echo '{fails}' >&2; exit 1" if fails else "exit 0"
        program = folder / "kubectl"
        program.write_text(f"""#!/bin/sh
echo "$*" >> {folder}/calls
case "$*" in
"config current-context") echo production;;
"config view"*) echo team;;
"get pvc"*) case "$3" in {exists}) echo "persistentvolumeclaim/$3";; esac;;
"apply --dry-run=server"*) cat > /dev/null; {refusal};;
apply*) cat > {self.applied}; echo job created; {failure};;
*) exec {shutil.which("kubectl")} "$@";;
esac
""")
        program.chmod(0o755)

    def submit(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return k8s.run_submit(*arguments, "--apply", path=str(self._folder))

    def kinds(self) -> list[tuple[str, str]]:
        items = yaml.safe_load_all(self.applied.read_text())
        return [(item["kind"], item["metadata"]["name"]) for item in items]

    def calls(self) -> list[str]:
        return (self._folder / "calls").read_text().splitlines()


def test_submission_shows_its_target_and_keeps_existing_claims(tmp_path):
    cluster = FakeCluster(tmp_path, "gan-runs", "gan-data")
    done = cluster.submit("--overlay=single-node")
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("Submitting to context production, namespace team.\n")
    assert "volume gan-runs exists and is used as it is" in done.stderr
    kinds = {kind for kind, _ in cluster.kinds()}
    assert kinds == {"ConfigMap", "Job", "NetworkPolicy", "ServiceAccount"}


def test_missing_claims_are_created(tmp_path):
    cluster = FakeCluster(tmp_path)
    done = cluster.submit("--overlay=cpu-smoke", "--context=c", "--namespace=n")
    assert done.returncode == 0, done.stderr
    assert "context c, namespace n" in done.stderr
    assert ("PersistentVolumeClaim", "gan-runs-smoke") in cluster.kinds()
    sent = [call for call in cluster.calls() if call.startswith(("apply", "get"))]
    assert len(sent) == 3
    assert all(call.endswith("--context=c --namespace=n") for call in sent)


def test_a_missing_volume_of_data_is_named_before_anything_is_applied(tmp_path):
    cluster = FakeCluster(tmp_path)
    done = cluster.submit("--overlay=single-node")
    assert done.returncode == ExitCode.USAGE
    assert "claim gan-data, which does not exist" in done.stderr
    assert not cluster.applied.exists()


def test_nothing_is_applied_if_the_cluster_refuses_an_object(tmp_path):
    """For example the PodMonitor, if the cluster does not know this kind."""
    cluster = FakeCluster(tmp_path, refuses="no matches for kind PodMonitor")
    done = cluster.submit("--overlay=cpu-smoke", "--component=prometheus")
    assert done.returncode == ExitCode.USAGE
    assert "no matches for kind PodMonitor" in done.stderr
    assert "nothing was applied" in done.stderr
    assert not cluster.applied.exists()


def test_failed_submission_prints_the_applied_objects(tmp_path):
    done = FakeCluster(tmp_path, fails="quota exceeded").submit("--overlay=cpu-smoke")
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == "job created\n"
    assert "quota exceeded" in done.stderr
    assert re.search(r"kubectl get job gan-cpu-smoke-\w{6}$", done.stderr)


def test_autopilot_has_no_metadata_selector():
    selector = "iam.gke.io/gke-metadata-server-enabled"
    assert k8s.pod_of(make("gcs"))["nodeSelector"][selector] == "true"
    manifests = k8s.submit("--overlay=gcs", "--component=autopilot", "--bucket=b")
    assert selector not in k8s.pod_of(manifests)["nodeSelector"]


def test_cpus_memory_and_gpu_resource_are_set():
    manifests = make("submitted workers in a bucket")
    resources = k8s.trainer_of(manifests)["resources"]
    assert resources["requests"].items() >= {"cpu": "2.5", "memory": "24Gi"}.items()
    assert gpus_of(manifests) == {"nvidia.com/mig-1g.10gb": 1}
    assert k8s.environment_of(manifests)["GOOGLE_CLOUD_QUOTA_PROJECT"] == "p"
    assert k8s.environment_of(manifests)["RUNS"] == "gs://b/runs"


def test_each_submission_creates_a_new_job_for_the_same_run():
    first, second = (k8s.submit("--overlay=single-node", "--recipe=mlp") for _ in range(2))
    names = {k8s.one_of(manifests, "Job")["metadata"]["name"] for manifests in (first, second)}
    assert len(names) == 2
    for kind in ("PersistentVolumeClaim", "ServiceAccount", "NetworkPolicy"):
        assert k8s.all_of(first, kind) == k8s.all_of(second, kind)
    assert k8s.one_of(first, "ConfigMap") != k8s.one_of(second, "ConfigMap")
    for manifests in (first, second):
        assert "--run_dir=/runs/mlp-cifar10" in k8s.arguments_of(manifests)


@pytest.mark.parametrize(
    ("image", "becomes"),
    [
        ("host:5000/x/gan", "host:5000/x/gan:0.2.0"),
        ("host/gan:9", "host/gan:9"),
        ("host/gan@sha256:0123", "host/gan@sha256:0123"),
    ],
)
def test_image_setting_replaces_name_and_tag(image, becomes):
    container = k8s.trainer_of(k8s.submit("--overlay=cpu-smoke", f"--image={image}"))
    assert container["image"] == becomes.replace("0.2.0", __version__)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--overlay=cpu-smoke", "--gpus=2"], "OVERLAY=cpu-smoke, which has no GPU"),
        (["--overlay=spot", "--gpu_type=a=b=c"], "LABEL=VALUE"),
        (["--overlay=spot", "--workers=2"], "OVERLAY=spot, which runs a single Pod"),
        (["--overlay=multi-worker", "--workers=1"], "single-node"),
        (["--overlay=gcs"], "BUCKET"),
        (["--overlay=multi-worker", "--component=gcs"], "require BUCKET=name"),
        (["--overlay=gcs", "--bucket=gs://b"], "without gs://"),
        (["--overlay=spot", "--bucket=b"], "BUCKET=b can only be used with OVERLAY=gcs"),
        (["--overlay=cpu-smoke", "--component=gke"], "COMPONENTS=gke is for GPUs"),
        (["--overlay=spot", "--cpus=many"], "CPUS=many is invalid"),
        (["--overlay=spot", "--memory=12"], "a number and a unit"),
        (["--overlay=spot", "--gpu_resource=mig"], "such as nvidia.com/mig-1g.10gb"),
        (["--overlay=spot", "--name=My_Run"], "lower-case letters"),
    ],
)
def test_invalid_submission_is_a_one_line_error(given, message):
    done = k8s.run_submit(*given)
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_make_passes_only_the_given_settings():
    given = ["OVERLAY=spot", "COMPONENTS=gcs kueue", "DATASET=mnist", "MEMORY=24Gi", "NAMESPACE=n"]
    command = ["make", "--dry-run", "k8s-submit", *given]
    done = subprocess.run(command, cwd=k8s.ROOT, text=True, capture_output=True, timeout=60)
    words = set(done.stdout.split())
    assert {"--overlay=spot", "--component=gcs", "--component=kueue"} <= words, done
    assert {'--dataset="mnist"', '--memory="24Gi"', '--namespace="n"'} <= words, done
    assert not any(word.startswith(("--recipe", "--length", "--apply", "--cpus")) for word in words)
