"""The manifests are valid for Kubernetes and consistent with the trainer and each other."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest

from tests.helpers import manifests as k8s
from tests.helpers import schemas
from tests.helpers.fake_kubectl import apply, fake_cluster
from trainer import __version__
from trainer.commands import train
from trainer.config.operation_settings import Limits
from trainer.errors import ExitCode

VERSIONS = ["1.31", "1.34", "1.37"]
GPU = "nvidia.com/gpu"
COMPONENTS = ["kueue", "prometheus"]
ACCOUNT = "a@b.iam.gserviceaccount.com"
SUBMITTED = {
    "submitted single-node": ["--overlay=single-node", "--gpus=4", "--dataset=mnist"],
    "submitted multi-worker": [
        "--overlay=multi-worker", "--gpus=2", "--workers=4", "--recipe=cgan", "--dataset=mnist",
        "--component=kueue", "--component=prometheus", "--image=host:5000/a/gan-trainer:0.2.0",
    ],
    "submitted gcs": [
        "--overlay=gcs", "--bucket=my-bucket", f"--service_account={ACCOUNT}", "--gpu_type=x",
    ],
    "submitted bucket and workers": [
        "--overlay=multi-worker", "--component=gcs", "--component=autopilot", "--component=spot",
        "--bucket=my-bucket", "--scratch=80Gi", "--memory=8Gi", "--cpus=2", "--billing_project=p",
    ],
}  # fmt: skip
RUNS = [*k8s.OVERLAYS, *(f"{name} + all" for name in k8s.OVERLAYS), *SUBMITTED]


def make(name: str) -> k8s.Manifests:
    if name in SUBMITTED:
        return k8s.submit(*SUBMITTED[name])
    overlay, plus, _ = name.partition(" + ")
    return k8s.render(f"overlays/{overlay}", *(COMPONENTS if plus else []))


@pytest.fixture(scope="module", params=RUNS)
def manifests(request) -> k8s.Manifests:
    return make(request.param)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_match_the_schemas(manifests, version):
    for item in manifests:
        schemas.validate(item, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "components"), [("data", ()), ("results", ()), ("data", ("openshift", "pull-secret"))]
)
def test_volume_pods_are_valid_secure_and_without_network(name, components, version):
    manifests = k8s.render(name, *components)
    for item in manifests:
        schemas.validate(item, version)
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


def test_documentation_names_the_service_account_of_gcs():
    name = k8s.one_of(make("gcs"), "ServiceAccount")["metadata"]["name"]
    assert f".svc.id.goog[gan/{name}]" in (k8s.ROOT / "docs/kubernetes.md").read_text()


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
    schemas.validate(job, VERSIONS[0])
    job = json.loads(json.dumps(job))
    place = job
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        schemas.validate(job, VERSIONS[0])


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
    assert job["backoffLimit"] > 0


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
    assert pod["terminationGracePeriodSeconds"] >= Limits().grace_secs + 3
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
    for claim in k8s.all_of(manifests, "PersistentVolumeClaim"):
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


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
    assert anywhere == {53, 443}
    blocks = [to["ipBlock"]["cidr"] for r in policy["spec"]["egress"] for to in r.get("to", [])]
    assert "169.254.169.254/32" in blocks


# The Pod.


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
    check_security(pod)
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
    wants_gpus = GPU in k8s.trainer_of(manifests)["resources"]["limits"]
    assert (name == "gan-trainer") == wants_gpus


def test_gpu_requests_flags_and_tolerations_agree(manifests, capsys):
    container, arguments = k8s.trainer_of(manifests), k8s.arguments_of(manifests)
    limits = container["resources"]["limits"]
    gpus = limits.get(GPU, 0)
    assert container["resources"]["requests"].get(GPU, gpus) == gpus
    assert ("--devices=gpu" in arguments) == bool(gpus)
    tolerated = any(t["key"] == GPU for t in k8s.pod_of(manifests).get("tolerations", []))
    assert tolerated == bool(gpus)
    pods = k8s.job_of(manifests).get("parallelism", 1)
    config = resolved(manifests, capsys)
    assert config["batch_size"] % (max(gpus, 1) * pods) == 0


# The trainer.


def resolved(manifests: k8s.Manifests, capsys) -> dict:
    """Returns the configuration that results from the container's arguments."""
    command, *arguments = k8s.arguments_of(manifests)
    assert command == "train"
    # The overlay gcs holds a placeholder, which is not a valid name.
    arguments = [argument.replace("gs://BUCKET/", "gs://my-bucket/") for argument in arguments]
    train.main([*arguments, "--dry_run"], lambda: False)
    return json.loads(capsys.readouterr().out)


def test_trainer_accepts_the_arguments(manifests, capsys):
    for argument in k8s.arguments_of(manifests):
        assert "$(" not in argument
    names = [a.partition("=")[0] for a in k8s.arguments_of(manifests)]
    assert len(set(names)) == len(names), "a flag is given more than once"
    config = resolved(manifests, capsys)
    environment = k8s.environment_of(manifests)
    for name in ("RECIPE", "DATASET"):
        assert config[name.lower()] == environment[name].replace("gs://BUCKET/", "gs://my-bucket/")


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
    limit = startup["periodSeconds"] * startup["failureThreshold"]
    assert 60 <= limit <= 300, "Kueue's waitForPodsReady expects ready Pods within 5 minutes"


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
    more = ["--bucket=my-bucket", f"--service_account={ACCOUNT}"] if overlay == "gcs" else []
    manifests = k8s.submit(f"--overlay={overlay}", f"--gpu_type={given}", *more)
    selector = k8s.pod_of(manifests)["nodeSelector"]
    kinds = {"nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "gpu"}
    assert {name: selector[name] for name in kinds & selector.keys()} == label


def test_failed_submission_prints_the_applied_objects(tmp_path):
    script = '[ "$1 $2" = "apply -f" ] && { echo job created; echo no quota >&2; exit 1; }'
    done = apply(fake_cluster(tmp_path, script))
    assert done.returncode == ExitCode.USAGE
    assert done.stdout == "Context: production, namespace: gan\njob created\n"
    assert "no quota" in done.stderr
    assert re.search(
        r"kubectl --context=production --namespace=gan get pods -l \S+=gan-cpu-smoke-\w{6}$",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("given", "context", "namespace"),
    [
        ([], "production", "gan"),  # the current ones, which may change between two calls
        (["--context=team a+b,c@d"], "team a+b,c@d", "gan"),
        (["--context=gke_p_z_c", "--namespace=team-a"], "gke_p_z_c", "team-a"),
    ],
)
def test_every_call_names_the_context_and_the_namespace(tmp_path, given, context, namespace):
    done = apply(fake_cluster(tmp_path, ""), *given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Context: {context}, namespace: {namespace}\n")
    calls = (tmp_path / "calls").read_text().splitlines()
    calls = [call for call in calls if not call.startswith("config ")]
    assert [call.split()[0] for call in calls] == ["get", "apply", "apply"]
    flags = [f"--context={context}", f"--namespace={namespace}"]
    assert all(call.endswith(" ".join(flags)) for call in calls)
    command = done.stdout.partition("To follow the log: kubectl ")[2]
    assert shlex.split(command)[:3] == [*flags, "logs"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("--context=nope", r"error: CONTEXT=nope .*not found.*`kubectl config get-contexts` lists"),
        ("--namespace=--all", "error: NAMESPACE=--all is invalid. Use at most 63 lower-case"),
    ],
)
def test_an_invalid_context_or_namespace_is_a_one_line_error(tmp_path, given, message):
    script = '[ "$1 $2" = "config view" ] && { echo not found >&2; exit 1; }'
    done = apply(fake_cluster(tmp_path, script), given)
    assert done.returncode == ExitCode.USAGE
    assert re.match(message, done.stderr)
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_nothing_is_applied_if_the_cluster_rejects_an_object(tmp_path):
    """For example a PodMonitor on a cluster without the Prometheus Operator."""
    script = '[ "$2" = --dry-run=server ] && { echo no matches for kind >&2; exit 1; }'
    done = apply(fake_cluster(tmp_path, script))
    assert done.returncode == ExitCode.USAGE
    assert "no matches for kind" in done.stderr
    assert "Nothing was applied" in done.stderr
    assert "apply -f" not in (tmp_path / "calls").read_text()


@pytest.mark.parametrize("exists", [True, False])
def test_claims_are_created_only_if_they_are_absent(tmp_path, exists):
    """An existing claim may be larger than the manifest's, and claims cannot shrink."""
    found = '[ "$2 $3" = "pvc gan-runs-smoke" ] && echo persistentvolumeclaim/gan-runs-smoke'
    script = f'{found if exists else ""}\n[ "$1 $2" = "apply -f" ] && cat > "${{0%/*}}/applied"'
    done = apply(fake_cluster(tmp_path, script))
    assert done.returncode == 0, done.stderr
    assert ("existing claim gan-runs-smoke" in done.stdout) == exists
    applied = (tmp_path / "applied").read_text()
    assert ("kind: PersistentVolumeClaim" in applied) == (not exists)
    assert "kind: Job" in applied


def test_a_missing_volume_of_data_is_named_before_anything_is_applied(tmp_path):
    """Otherwise the Pod would wait for it without an end."""
    done = apply(fake_cluster(tmp_path, ""), overlay="single-node")
    assert done.returncode == ExitCode.USAGE
    assert "volume gan-data, which does not exist" in done.stderr
    assert "apply" not in (tmp_path / "calls").read_text()
    script = '[ "$2 $3" = "pvc gan-data" ] && echo persistentvolumeclaim/gan-data'
    assert apply(fake_cluster(tmp_path, script), overlay="single-node").returncode == 0


@pytest.mark.parametrize("components", [[], ["--component=kueue"]])
def test_jobset_recreates_the_job_without_a_back_off(components):
    arguments = ["--overlay=multi-worker", "--workers=3", *components]
    manifests = k8s.submit(*arguments, "--jobset")
    for item in manifests:
        schemas.validate(item, VERSIONS[-1])
    jobset, job = k8s.one_of(manifests, "JobSet"), k8s.job_of(manifests)
    assert job["backoffLimit"] == 0
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = {ExitCode.USAGE, ExitCode.DATA, ExitCode.DIVERGED, ExitCode.CHECKPOINT}
    assert set(rule["onExitCodes"]["values"]) == codes | {ExitCode.BUSY}
    final, others = jobset["spec"]["failurePolicy"]["rules"]
    assert final["action"] == "FailJobSet"
    assert final["onJobFailureReasons"] == ["PodFailurePolicy", "DeadlineExceeded"]
    assert others == {"name": "restart", "action": "RestartJobSetAndIgnoreMaxRestarts"}
    assert jobset["spec"].get("suspend", False) == bool(components)
    assert ("kueue.x-k8s.io/queue-name" in jobset["metadata"]["labels"]) == bool(components)
    assert "suspend" not in job
    name = jobset["metadata"]["name"]
    assert f"--workers={name}-w-0-0.gan-workers:2222," in " ".join(k8s.arguments_of(manifests))
    assert len(f"gan-{'x' * 36}-{'0' * 6}-w-0-999-{'0' * 5}") <= 63
    labels = job["template"]["metadata"]["labels"]
    (policy,) = (p for p in k8s.all_of(manifests, "NetworkPolicy") if p["metadata"]["name"] == name)
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    plain = k8s.job_of(k8s.submit(*arguments))
    changed = {"backoffLimit", "podFailurePolicy", "ttlSecondsAfterFinished", "suspend"}
    assert job.keys() - changed == plain.keys() - changed
    assert plain["backoffLimit"] == 4 * 3


def test_resources_follow_the_number_of_gpus():
    shm = []

    def resources(*arguments: str) -> dict:
        manifests = k8s.submit("--overlay=single-node", *arguments)
        (volume,) = (v for v in k8s.pod_of(manifests)["volumes"] if v["name"] == "shm")
        shm.append(size(volume["emptyDir"]["sizeLimit"]) / 2**30)
        return k8s.trainer_of(manifests)["resources"]

    assert resources()["requests"].items() >= {"cpu": "3", "memory": "12Gi"}.items()
    eight = resources("--gpus=8")
    assert eight["requests"].items() >= {"cpu": "24", "memory": "96Gi"}.items()
    assert shm == [3, 4]  # GiB: a quarter of the memory, at most 4
    for found in (resources(), eight):
        assert found["limits"]["memory"] == found["requests"]["memory"]
    given = resources("--gpus=2", "--cpus=40", "--memory=100Gi")
    assert given["requests"].items() >= {"cpu": "40", "memory": "100Gi"}.items()
    assert given["limits"].items() >= {"cpu": "40", "memory": "100Gi", GPU: 2}.items()
    mig = resources("--gpu_resource=nvidia.com/mig-1g.10gb")["limits"]
    assert mig["nvidia.com/mig-1g.10gb"] == 1
    assert GPU not in mig
    assert resources("--gpu_resource=example.com/vgpu")["limits"]["example.com/vgpu"] == 1


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
        (f"host/gan@sha256:{'0' * 64}", f"host/gan@sha256:{'0' * 64}"),
        (f"HOST/gan:9@sha256:{'a' * 64}", f"HOST/gan:9@sha256:{'a' * 64}"),
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
        (["--overlay=spot", "--bucket=my-bucket"], "only be used with the component gcs"),
        (
            ["--overlay=gcs", "--bucket=my-bucket", "--component=openshift"],
            "gke and openshift cannot be",
        ),
        (["--overlay=spot", "--memory=12GB"], "a size such as 24Gi"),
        (["--overlay=spot", "--gpus=2", "--gpu_resource=nvidia.com/mig-1g.5gb"], "one MIG device"),
        (["--overlay=spot", "--gpu_resource=gpu"], "such as nvidia.com/gpu"),
        (["--overlay=spot", "--name=My_Run"], "lower-case letters"),
    ],
)
def test_invalid_submission_is_a_one_line_error(given, message):
    done = subprocess.run(
        [sys.executable, k8s.K8S / "submit.py", *given], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == ExitCode.USAGE
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_make_passes_only_the_given_settings():
    command = ["make", "--dry-run", "k8s-submit", "OVERLAY=spot", "DATASET=mnist", "GPUS=2"]
    command.append("CONTEXT=team a+b,c@d")
    done = subprocess.run(command, cwd=k8s.ROOT, text=True, capture_output=True, timeout=60)
    words = shlex.split(done.stdout)
    given = {"--overlay=spot", "--dataset=mnist", "--gpus=2", "--context=team a+b,c@d"}
    assert given <= set(words), done
    assert not any(word.startswith(("--recipe", "--length", "--apply")) for word in words)
