"""The number of FLOPs of a training step and its share of the measured matrix-product FLOP/s."""

import pytest
import tensorflow as tf

from trainer.training import utilisation
from trainer.training.utilisation import UtilisationMeter, flops


def count_flops(function, *shapes):
    specification = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return flops(tf.function(function).get_concrete_function(*specification).graph)


def test_flops_count_matrix_products_and_convolutions():
    assert count_flops(tf.matmul, [3, 5], [5, 7]) == 2 * 3 * 5 * 7
    assert (
        count_flops(lambda a, b: tf.matmul(a, b, transpose_a=True), [5, 3], [5, 7]) == 2 * 3 * 5 * 7
    )
    images, kernel = [2, 8, 8, 3], [5, 5, 3, 4]
    forward = 2 * (2 * 4 * 4 * 4) * (5 * 5 * 3)
    assert count_flops(lambda x, k: tf.nn.conv2d(x, k, 2, "SAME"), images, kernel) == forward

    def both_gradients(x, k):
        with tf.GradientTape() as tape:
            tape.watch([x, k])
            y = tf.nn.conv2d(x, k, 2, "SAME")
        return tape.gradient(y, [x, k])

    # The graph contains the forward pass as well, but no output depends on it.
    assert count_flops(both_gradients, images, kernel) == 2 * forward
    assert count_flops(lambda x: tf.tanh(x) + 1.0, images) == 0


def test_utilisation_is_relative_to_the_highest_measured_rate(monkeypatch):
    rates = iter([100.0, 400.0])
    monkeypatch.setattr(utilisation, "matmul_flops_per_sec", lambda *_: next(rates))
    meter = UtilisationMeter(("CPU:0", "CPU:1"), "float32")
    meter.flops = 50
    assert meter.utilisation(1.0) == pytest.approx(0.5)
    # A step cannot exceed the peak rate, so the peak is measured again.
    assert meter.utilisation(4.0) == pytest.approx(0.5)
    assert meter.utilisation(2.0) == pytest.approx(0.25)


def test_matrix_product_rate_is_plausible():
    assert 1e8 < utilisation.matmul_flops_per_sec("CPU:0", "float32") < 1e14


def test_steps_that_beat_the_matrix_product_use_all_of_the_device(monkeypatch):
    monkeypatch.setattr(utilisation, "matmul_flops_per_sec", lambda device, precision: 1000.0)
    meter = UtilisationMeter(("CPU:0",), "float32")
    meter.flops = 100
    assert meter.utilisation(5.0) == 0.5
    assert meter.utilisation(20.0) == 1.0
    assert meter.utilisation(10.0) == 0.5
