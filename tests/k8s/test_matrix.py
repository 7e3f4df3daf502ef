"""Every sensible combination of the components renders, is valid and keeps its promises."""

import itertools
import re

import pytest

from tests.helpers import manifests as k8s
from tests.helpers import schemas
from tests.helpers.job_controller import backoff_secs

EXTRAS = ["pull-secret", "runtime-class", "priority", "do-not-disrupt", "kueue"]
RECENT = ["restart-in-place"]  # needs fields of Kubernetes 1.34 and newer
COMPONENTS = {path.name for path in (k8s.K8S / "components").iterdir()}
CHOICES = [  # one of each
    [[], ["gcs"]],
    [[], ["multi-worker"]],
    [[], ["gke"], ["autopilot"], ["openshift"], ["spot"], ["gke", "spot"], ["autopilot", "spot"]],
    [[], ["prometheus", *EXTRAS], ["google-prometheus", *EXTRAS, *RECENT]],
]


def own(overlay: str) -> list[str]:
    """Returns the components of an overlay."""
    text = (k8s.K8S / "overlays" / overlay / "kustomization.yaml").read_text()
    return re.findall(r"^  - \.\./\.\./components/(\S+)$", text, re.M)


def combinations() -> dict[frozenset[str], tuple[str, ...]]:
    """Returns overlays with additional components, by the set of all their components."""
    found = {}
    for overlay in k8s.OVERLAYS:
        for chosen in itertools.product(*CHOICES):
            added = [name for name in itertools.chain(*chosen) if name not in own(overlay)]
            components = frozenset(own(overlay)) | set(added)
            if overlay == "cpu-smoke" and (chosen[2] or chosen[3]):
                continue  # a smoke test needs only a place for its run
            if len(components & {"gke", "autopilot", "openshift"}) <= 1:
                found.setdefault(components, (overlay, *added))
    return found


@pytest.fixture(scope="module")
def rendered() -> list[tuple[frozenset[str], k8s.Manifests]]:
    found = combinations()
    return list(zip(found, k8s.render_all(list(found.values())), strict=True))


def test_the_matrix_has_all_components(rendered):
    assert set().union(*(components for components, _ in rendered)) == COMPONENTS - {"metrics"}
    assert frozenset({"gpu", "multi-worker", "gcs", "spot"}) in dict(rendered)


def test_all_combinations_match_the_schemas(rendered):
    for components, manifests in rendered:
        for item in manifests:
            schemas.validate(item, "1.37" if set(RECENT) & components else "1.31")
        names = [(item["kind"], item["metadata"]["name"]) for item in manifests]
        assert len(set(names)) == len(names), components


def test_each_component_has_its_effect_in_every_combination(rendered):
    for components, manifests in rendered:
        pod, arguments = k8s.pod_of(manifests), k8s.arguments_of(manifests)
        selector = pod["nodeSelector"]
        assert ("iam.gke.io/gke-metadata-server-enabled" in selector) == ("gke" in components)
        assert ("cloud.google.com/gke-spot" in selector) == ("spot" in components)
        assert (pod["terminationGracePeriodSeconds"] <= 15) == ("spot" in components)
        assert ("--devices=gpu" in arguments) == ("gpu" in components)
        assert ("runAsUser" in pod["securityContext"]) == ("openshift" not in components)
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert len({a.partition("=")[0] for a in arguments}) == len(arguments), components
        has_metrics = {"prometheus", "google-prometheus"} & components
        assert ("--metrics_port=9090" in arguments) == bool(has_metrics)
        assert any("restartPolicyRules" in c for c in pod["containers"]) == (
            "restart-in-place" in components
        )


def test_runs_are_on_a_claim_or_in_a_bucket(rendered):
    """Only the chief writes to a bucket, so workers need no shared volume with it."""
    for components, manifests in rendered:
        claims = k8s.all_of(manifests, "PersistentVolumeClaim")
        (runs,) = (v for v in k8s.pod_of(manifests)["volumes"] if v["name"] == "runs")
        (run_dir,) = (a for a in k8s.arguments_of(manifests) if a.startswith("--run_dir="))
        if "gcs" in components:
            assert not claims
            assert runs.keys() == {"name", "ephemeral"}
            assert run_dir.startswith("--run_dir=gs://BUCKET/runs/")
            continue
        (claim,) = claims
        assert runs["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        shared = claim["spec"]["accessModes"] == ["ReadWriteMany"]
        assert shared == ("multi-worker" in components), components


def test_compiled_kernels_are_kept_beside_the_runs(rendered):
    for components, manifests in rendered:
        environment = [item["name"] for item in k8s.trainer_of(manifests)["env"]]
        if "gpu" not in components:
            continue
        folder = k8s.environment_of(manifests)["CUDA_CACHE_PATH"]
        if "multi-worker" in components:
            assert folder == "/runs/.cuda-cache/$(WORKER)"
            assert environment.index("WORKER") < environment.index("CUDA_CACHE_PATH")
        else:
            assert folder == "/runs/.cuda-cache"


def test_worker_ports_are_closed_to_other_pods_in_every_combination(rendered):
    """TensorFlow executes whatever a client of a worker's port sends."""
    for components, manifests in rendered:
        labels = k8s.job_of(manifests)["template"]["metadata"]["labels"]
        policies = k8s.all_of(manifests, "NetworkPolicy")
        for policy in policies:
            assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
            assert "Ingress" in policy["spec"]["policyTypes"]
            for rule in policy["spec"]["ingress"]:
                ports = [port["port"] for port in rule.get("ports", [])]
                same_run = [{"podSelector": {"matchLabels": {"app.kubernetes.io/instance": "gan"}}}]
                assert rule["from"] == same_run or ports == [9090], components
        (general,) = (p for p in policies if p["metadata"]["name"] == "gan-trainer")
        assert general["spec"]["ingress"] == []
        ports = {p["port"] for p in general["spec"]["egress"][0]["ports"]}
        assert (5353 in ports) == ("openshift" in components)


def test_the_model_of_the_job_controller_has_its_back_off():
    """As in Kubernetes's pkg/controller/job/backoff_utils.go, with its times."""
    delays = [backoff_secs(failures, 10, 600) for failures in range(9)]
    assert delays == [0, 10, 20, 40, 80, 160, 320, 600, 600]
