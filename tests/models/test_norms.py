"""Batch norm over several replicas equals that of one replica."""

import numpy as np
import pytest
import tensorflow as tf

from trainer import recipes
from trainer.machine.replicas import create_replicas
from trainer.models import norms

SHAPE = (16, 4, 4, 6)
SCALES = np.linspace(0.5, 2, SHAPE[-1])


def draw_values(ratio):
    """Returns values [N, H, W, C] whose mean is `ratio` times their standard deviation."""
    values = np.random.default_rng(0).normal(size=SHAPE) * SCALES
    values += np.linspace(-1, 1, len(values))[:, None, None, None]  # the replicas' means differ
    return (values + ratio * values.std((0, 1, 2))).astype(np.float32)


def train_once(values, count):
    """Returns what a new batch norm computes with `count` replicas, and its traced function.

    The stored statistics have their initial values 0 and 1 before. The results are the outputs,
    the gradients with respect to the values, the scale and the shift, and the stored statistics.
    """
    replicas = create_replicas(recipes.resolve(dict(devices=f"cpu:{count}")))
    strategy = replicas.strategy
    with replicas.scope():
        layer = norms.BatchNorm(momentum=0.0)
        layer.build(values.shape)
    layer.gamma.assign(SCALES)
    weights = np.random.default_rng(1).normal(size=values.shape).astype(np.float32)

    def on_replica(share, weight):
        with tf.GradientTape() as tape:
            tape.watch(share)
            outputs = layer(share, training=True)
            loss = tf.reduce_sum(weight * outputs**2)
        return outputs, *tape.gradient(loss, [share, layer.gamma.value, layer.beta.value])

    @tf.function(autograph=False)
    def on_replicas(*args):
        return strategy.run(on_replica, args=args)

    def shares(array):
        parts = np.split(array, count)
        return strategy.experimental_distribute_values_from_function(
            lambda replica: tf.constant(parts[replica.replica_id_in_sync_group])
        )

    args = shares(values), shares(weights)
    results = [strategy.experimental_local_results(result) for result in on_replicas(*args)]
    outputs, by_values, by_scale, by_shift = results
    named = {
        "outputs": np.concatenate(outputs),
        "mean": layer.moving_mean.numpy(),
        "variance": layer.moving_variance.numpy(),
        "gradient of values": np.concatenate(by_values),
        "gradient of scale": np.sum(by_scale, 0),
        "gradient of shift": np.sum(by_shift, 0),
    }
    return named, on_replicas.get_concrete_function(*args)


@pytest.mark.parametrize("ratio", [0, 100, 1000])
def test_batch_norm_of_two_replicas_equals_that_of_one(ratio):
    values = draw_values(ratio)
    one, _ = train_once(values, 1)
    two, _ = train_once(values, 2)
    for name, expected in one.items():
        # At 1,000 one replica's rounding of the mean changes its own gradients by 2e-4.
        tolerance = 5e-4 if ratio == 1000 and "gradient" in name else 1e-4
        error = np.abs(two[name] - expected).max() / np.abs(expected).max()
        assert error < tolerance, f"{name}: {error:.2e}"
    exact = values.astype(np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    np.testing.assert_allclose(two["variance"], variance, rtol=1e-5)
    outputs = (exact - mean) / np.sqrt(variance + 1e-3) * SCALES
    np.testing.assert_allclose(two["outputs"], outputs, atol=1e-5)


def test_a_batch_norm_costs_one_collective_forward_and_one_backward():
    _, traced = train_once(draw_values(0), 2)
    kinds = [operation.type for operation in traced.graph.get_operations()]
    assert kinds.count("CollectiveReduceV2") == 2 * 2  # each exists once per replica
    assert not any("Gather" in kind for kind in kinds if kind.startswith("Collective"))
