"""Entries of a kustomization: JSON patches and replaced images."""

import json
from typing import Any

Json = dict[str, Any]

CONTAINER = "/spec/template/spec/containers/0"
INSTANCE = "app.kubernetes.io~1instance"  # as a part of a JSON pointer


def patch(target: dict[str, str], edits: list[Json]) -> Json:
    """Returns a kustomize patch, which may also change the names of the objects it matches."""
    return {"target": target, "options": {"allowNameChange": True}, "patch": json.dumps(edits)}


def replace(path: str, value: object) -> Json:
    """Returns a JSON-patch operation that replaces an existing value."""
    return {"op": "replace", "path": path, "value": value}


def add(path: str, value: object) -> Json:
    """Returns a JSON-patch operation that adds a value."""
    return {"op": "add", "path": path, "value": value}


def pod_patch(pod: Json) -> Json:
    """Returns the patch that merges fields into the Pod template of a Job."""
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "gan"}}
    spec = {"template": {"spec": pod}}
    return {"target": {"kind": "Job"}, "patch": json.dumps({**job, "spec": spec})}


def volume_patch(volume: Json) -> Json:
    """Returns the patch that merges fields into the volume of the same name."""
    return pod_patch({"volumes": [volume]})


def removed(**key: str) -> Json:
    """Returns the item of a list in a patch that removes the item with this key."""
    return {**key, "$patch": "delete"}


def node_selector(label: str) -> str:
    """Returns the JSON pointer to a label in the node selector of a Job."""
    return f"/spec/template/spec/nodeSelector/{escaped(label)}"


def escaped(name: str) -> str:
    """Returns a name as a part of a JSON pointer."""
    return name.replace("~", "~0").replace("/", "~1")


def image_override(name: str, wanted: str) -> dict[str, str]:
    """Returns the entry of `images` that replaces one of the project's images.

    Args:
      name: Image name in the overlays.
      wanted: HOST/NAME, HOST/NAME:TAG or HOST/NAME@sha256:DIGEST. Without a tag the overlay's
        tag is kept.
    """
    repository, at, digest = wanted.partition("@")
    if at:
        return {"name": name, "newName": repository, "digest": digest}
    repository, colon, tag = wanted.rpartition(":")
    if not colon or "/" in tag:  # the colon precedes the port of a registry
        return {"name": name, "newName": wanted}
    return {"name": name, "newName": repository, "newTag": tag}
