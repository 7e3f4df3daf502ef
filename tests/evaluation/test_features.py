"""The feature networks: the classifier of the data set, and the Inception graph."""

import hashlib
import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import graph_pb2

from tests.helpers.inception_graph import small_graph
from trainer import recipes
from trainer.data import sources
from trainer.data.images import ImageSet
from trainer.errors import ExitCode, UsageError
from trainer.evaluation import classifier, inception
from trainer.evaluation.features import BATCH, extract, in_batches
from trainer.files import array_cache


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gan-trainer"


@pytest.mark.parametrize("scaled", [True, False])
def test_inception_applies_the_graph_to_batches(tmp_path, scaled):
    path = tmp_path / inception.GRAPH
    path.write_bytes(small_graph(scaled=scaled))
    network = inception.load(str(path))
    assert (network.name, len(network.digest)) == ("inception", 16)
    images = np.random.default_rng(1).integers(0, 256, [BATCH + 3, 28, 28, 1], np.uint8)
    outputs = extract(network, in_batches(images))
    assert outputs.features.shape == (BATCH + 3, 5)
    assert outputs.logits.shape == (BATCH + 3, 7)
    # The expected values come from the graph itself, one image at a time.
    graph_def = graph_pb2.GraphDef.FromString(small_graph(scaled=scaled))
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        tf.graph_util.import_graph_def(graph_def, name="")
        for row in (0, 57, BATCH + 2):
            one = np.repeat(images[row : row + 1], 3, -1).astype(np.float32)
            pool, logits = session.run(["pool_3:0", "softmax/logits:0"], {"ExpandDims:0": one})
            np.testing.assert_allclose(outputs.features[row], pool[0, 0, 0], rtol=1e-4, atol=1e-5)
            # Published scores use logits without the bias, which is 1 here.
            np.testing.assert_allclose(outputs.logits[row], logits[0] - 1, rtol=1e-4, atol=1e-4)


def test_inception_is_loaded_from_its_archive(tmp_path):
    content = small_graph()
    path = tmp_path / inception.ARCHIVE
    with tarfile.open(path, "w:gz") as archive:
        for name, data in (("LICENSE", b"text"), (f"./{inception.GRAPH}", content)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    plain = tmp_path / "graph.pb"
    plain.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    for file in (path, plain):
        found = inception.load(str(file), sha256=digest)
        assert found.details["sha256"] == digest
        with pytest.raises(UsageError, match=f"--inception_sha256=12: .* has the SHA-256 {digest}"):
            inception.load(str(file), sha256="12")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.pb", None, "absent.pb does not exist"),
        ("text.pb", b"this is no graph", "is not the Inception network (not a TensorFlow graph)"),
        ("other.pb", b"", "is not the Inception network (it has no node ExpandDims)"),
        ("torn.tgz", b"\x1f\x8b\x08torn", "cannot be unpacked"),
        ("folder", "folder", "cannot be read"),
        ("empty.tar", "archive", "does not contain classify_image_graph_def.pb"),
        ("half.pb", "half", "is not the Inception network"),
    ],
)
def test_a_wrong_file_is_refused_with_the_origin_of_the_right_one(tmp_path, name, content, message):
    path = tmp_path / name
    if content == "folder":
        path.mkdir()
    elif content == "archive":
        tarfile.open(path, "w").close()
    elif content == "half":
        path.write_bytes(small_graph()[:-300])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        inception.load(str(path))
    text = str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE
    assert text.startswith(f"--inception_path={path} ")
    assert message in text
    assert inception.ORIGIN in text
    assert "\n" not in text


@pytest.fixture
def budget(monkeypatch):
    """Shortens the training of the classifier."""
    monkeypatch.setitem(classifier.IMAGES, 1, 4000)
    tf.config.experimental.enable_op_determinism()


def test_a_classifier_is_trained_once_and_cached(budget, cache, monkeypatch, caplog):
    caplog.set_level("INFO", "trainer")
    config = recipes.resolve(dict(dataset="digits"))
    data = sources.load(config)
    network = classifier.load(config, data)
    assert network.details["test_accuracy"] > 0.5
    assert network.details["test_images"] == 297
    entry = next(cache.glob("classifier-*.npz"))
    monkeypatch.setattr(classifier, "train", None)  # must not be called again
    again = classifier.load(config, data)
    assert (again.digest, dict(again.details)) == (network.digest, dict(network.details))
    images = data.images[:7]
    for one, other in zip(
        vars(extract(network, [images])).values(), vars(extract(again, [images])).values()
    ):
        np.testing.assert_array_equal(one, other)
    # A run on another split uses the same classifier.
    whole = config.replace(split="all")
    assert classifier.load(whole, sources.load(whole)).digest == network.digest
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parent))
    monkeypatch.setitem(classifier.IMAGES, 1, 4000)
    # A damaged entry is replaced by an equal one.
    entry.write_bytes(entry.read_bytes()[:-100])
    assert classifier.load(config, data).digest == network.digest
    assert "is damaged" in caplog.text
    assert array_cache.read(entry.name) is not None


def test_features_of_an_image_do_not_depend_on_the_rest_of_its_batch(budget):
    config = recipes.resolve(dict(dataset="digits"))
    data = sources.load(config)
    network = classifier.create_feature_network(classifier.build(data.shape), {})
    many = extract(network, in_batches(data.images[: BATCH + 20]))
    few = extract(network, in_batches(data.images[:3]))
    np.testing.assert_array_equal(many.features[:3], few.features)
    assert many.features.shape == (BATCH + 20, 128)


def test_training_of_the_classifier_can_be_interrupted(budget):
    def check_interrupt():
        raise KeyboardInterrupt

    config = recipes.resolve(dict(dataset="digits"))
    with pytest.raises(KeyboardInterrupt):
        classifier.load(config, sources.load(config), check_interrupt)


def test_images_without_labels_need_inception():
    images = np.zeros([64, 28, 28, 1], np.uint8)
    for names in ((), ("one",)):
        data = ImageSet(images, np.zeros(64, np.int32), names)
        with pytest.raises(
            UsageError, match=r"has no classes, .* Inception instead, with --inception_path"
        ):
            classifier.load(recipes.resolve({}), data)


def test_without_a_writable_cache_nothing_is_cached(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    array_cache.write("x.npz", {"a": np.ones(3)}, {})
    assert "Cannot cache x.npz in" in caplog.text
    assert array_cache.read("x.npz") is None


def test_the_cache_leaves_no_temporary_files(cache):
    array_cache.write("x.npz", {"a": np.ones(3)}, {"b": 1})
    arrays, description = array_cache.read("x.npz")
    assert (arrays["a"].tolist(), description) == ([1, 1, 1], {"b": 1})
    assert [path.name for path in cache.iterdir()] == ["x.npz"]
    assert array_cache.key("k", (1, 2)) != array_cache.key("k", (12,))
