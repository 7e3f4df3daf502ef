"""--class_balance=equal: all classes are shown equally often."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.runs import records
from trainer import recipes
from trainer.data import order, pipeline, sources
from trainer.data.images import ImageSet
from trainer.errors import DataError, ExitCode, UsageError

LABELS = np.array([2] * 5 + [0] * 20 + [2] * 2 + [3] * 1, np.int32)  # none of class 1
CLASSES = 3


def shown(count, first=0, seed=0):
    positions = tf.range(first, first + count, dtype=tf.int64)
    return order.BalancedOrder(seed, LABELS).images(positions).numpy()


def test_each_block_holds_every_class_once_in_a_permuted_order():
    blocks = LABELS[shown(600)].reshape(-1, CLASSES)
    assert (np.sort(blocks, 1) == [0, 2, 3]).all()
    counts = [np.bincount(blocks[:, place], minlength=4) for place in range(CLASSES)]
    assert min(count[k] for count in counts for k in (0, 2, 3)) > 40  # of 200 blocks


def test_block_b_shows_image_b_mod_n_of_permutation_b_div_n():
    images = shown(CLASSES * 140).reshape(-1, CLASSES)
    for label in (0, 2, 3):
        (members,) = np.nonzero(label == LABELS)
        passes = images[LABELS[images] == label].reshape(-1, len(members))
        assert (np.sort(passes, 1) == members).all()  # each pass shows every image of the class
        if len(members) > 1:
            assert len({tuple(one) for one in passes}) > 1


def test_the_order_is_a_function_of_the_seed_and_the_position():
    whole = shown(200)
    np.testing.assert_array_equal(shown(50, first=150), whole[150:])
    assert (shown(200, seed=1) != whole).any()
    far = shown(30, first=3 * 10**15)  # as cheap as the first positions
    assert (np.sort(LABELS[far].reshape(-1, CLASSES), 1) == [0, 2, 3]).all()


@pytest.mark.parametrize("replicas", [1, 2])
def test_replicas_share_the_batches(replicas):
    images = np.arange(len(LABELS), dtype=np.uint8).reshape(-1, 1, 1, 1)
    data = ImageSet(images, LABELS, ("a", "b", "c", "d"))
    plan = pipeline.BatchPlan(
        seed=5, batch_size=4, batches_per_step=2, first_step=3, class_balance="equal"
    )
    made = pipeline.batches(data, plan, replicas=range(replicas), num_replicas=replicas)
    parts = [(i.numpy(), k.numpy()) for i, k in made.take(2 * replicas)]
    for step in range(2):
        mine = parts[step * replicas : (step + 1) * replicas]
        seen = np.concatenate([pixels for pixels, _ in mine], axis=1).ravel()
        np.testing.assert_array_equal(seen, shown(8, first=8 * (step + 3), seed=5))
        labels = np.concatenate([labels for _, labels in mine], axis=1).ravel()
        np.testing.assert_array_equal(labels, LABELS[seen])


def test_a_run_keeps_the_balance_and_says_what_it_cannot_do(run, tiny, tmp_path):
    config = tiny(class_balance="equal", length="2 steps")
    run(config)
    assert len(records(config.run_dir)) > 0
    assert recipes.resolve({}).class_balance == "none"
    with pytest.raises(UsageError, match="excludes --shuffle=blocks"):
        recipes.resolve(dict(class_balance="equal", shuffle="blocks"))
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 8, 8), np.uint8))
    config = recipes.resolve(
        dict(dataset=str(tmp_path / "x.npz"), class_balance="equal", batch_size=2)
    )
    with pytest.raises(DataError, match="--class_balance=equal: --dataset=") as error:
        sources.adapt(config, sources.load(config), ())
    assert error.value.exit_code == ExitCode.DATA
