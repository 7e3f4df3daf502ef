"""Validates manifests strictly: built-in kinds by Kubernetes's schemas, others by minimal ones."""

import functools
import json

import jsonschema
import kubernetes_validate
import yaml

# Each schema is closed, and limited to the fields that are used here.
CUSTOM = yaml.safe_load("""
PodMonitor:  # of the Prometheus Operator
  api: monitoring.coreos.com/v1
  type: object
  additionalProperties: false
  required: [selector, podMetricsEndpoints]
  properties:
    podTargetLabels: {type: array, items: {type: string}}
    selector: &selector
      type: object
      additionalProperties: false
      properties:
        matchLabels: {type: object, additionalProperties: {type: string}}
    podMetricsEndpoints: &endpoints
      type: array
      minItems: 1
      items:
        type: object
        additionalProperties: false
        properties:
          port: {type: string}
          interval: {type: string, pattern: "^[0-9]+(ms|s|m|h)$"}
PrometheusRule:  # of the Prometheus Operator
  api: monitoring.coreos.com/v1
  type: object
  additionalProperties: false
  required: [groups]
  properties:
    groups:
      type: array
      items:
        type: object
        additionalProperties: false
        required: [name, rules]
        properties:
          name: {type: string}
          rules:
            type: array
            items:
              type: object
              additionalProperties: false
              required: [alert, expr]
              properties:
                alert: {type: string, pattern: "^[A-Za-z]+$"}
                expr: {type: string}
                for: {type: string, pattern: "^[0-9]+(s|m|h)$"}
                labels: {type: object, additionalProperties: {type: string}}
                annotations: {type: object, additionalProperties: {type: string}}
PodMonitoring:  # of Google Cloud Managed Service for Prometheus
  api: monitoring.googleapis.com/v1
  type: object
  additionalProperties: false
  required: [selector, endpoints]
  properties:
    selector: *selector
    endpoints: *endpoints
    targetLabels:
      type: object
      additionalProperties: false
      properties:
        fromPod:
          type: array
          items:
            type: object
            additionalProperties: false
            required: [from]
            # Labels that Google reserves, such as `instance`, are refused.
            properties:
              from: {type: string}
              to: {type: string, not: {enum: [cluster, instance, job, location, namespace]}}
JobSet:
  api: jobset.x-k8s.io/v1alpha2
  type: object
  additionalProperties: false
  required: [replicatedJobs, failurePolicy, network]
  properties:
    suspend: {type: boolean}
    ttlSecondsAfterFinished: {type: integer, minimum: 0}
    network:
      type: object
      additionalProperties: false
      properties: {enableDNSHostnames: {type: boolean}}
    failurePolicy:
      type: object
      additionalProperties: false
      properties:
        maxRestarts: {type: integer}
        restartStrategy: {enum: [Recreate, BlockingRecreate, InPlaceRestart]}
        rules:
          type: array
          items:
            type: object
            additionalProperties: false
            required: [name, action]
            properties:
              name: {type: string, pattern: "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}
              action: {enum: [FailJobSet, RestartJobSet, RestartJobSetAndIgnoreMaxRestarts]}
              onJobFailureReasons:
                type: array
                uniqueItems: true
                items:
                  enum: [BackoffLimitExceeded, DeadlineExceeded, FailedIndexes,
                         MaxFailedIndexesExceeded, PodFailurePolicy]
    replicatedJobs:
      type: array
      minItems: 1
      maxItems: 1
      items:
        type: object
        additionalProperties: false
        required: [name, template]
        properties:
          name: {type: string, pattern: "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
          replicas: {const: 1}
          template: {type: object}  # a Job without apiVersion and kind; see `validate`
""")


def validate(item: dict, version: str) -> None:
    """Validates an object against its schema. Unknown fields and kinds are errors."""
    schema = CUSTOM.get(item["kind"])
    if schema is None:
        _validate_text(json.dumps(item, sort_keys=True), version)
        return
    assert item.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert item["apiVersion"] == schema["api"]
    assert "name" in item["metadata"]
    jsonschema.validate(item["spec"], {name: s for name, s in schema.items() if name != "api"})
    for replicated in item["spec"].get("replicatedJobs", []):
        validate({"apiVersion": "batch/v1", "kind": "Job", **replicated["template"]}, version)


@functools.cache
def _validate_text(text: str, version: str) -> None:
    """Validates an object; cached, because overlays share objects."""
    assert kubernetes_validate.validate(json.loads(text), version, strict=True) == version
