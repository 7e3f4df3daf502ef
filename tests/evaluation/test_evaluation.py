"""Evaluations during and after training, with tiny runs on digits."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.inception_graph import small_graph
from tests.helpers.runs import variables
from trainer import recipes
from trainer.config.settings import Duration
from trainer.data import sources
from trainer.data.images import ImageSet
from trainer.errors import CheckpointError, DataError, ExitCode, StoppedError, UsageError
from trainer.evaluation import classifier, during_training, evaluator, finished_run, reference
from trainer.evaluation.features import extract, in_batches
from trainer.generation import generate
from trainer.metrics import registry
from trainer.run_dir import evaluation_history, selection
from trainer.run_dir.checkpoint_files import checkpoint_step, list_checkpoints
from trainer.run_dir.directory import RunDir


def steps(count):
    return Duration(count, "steps")


@pytest.fixture(scope="session")
def trained_cache(tmp_path_factory):
    """Returns a cache folder shared by all tests, so that the classifier is trained only once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def cache(trained_cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained_cache))
    monkeypatch.setitem(classifier.IMAGES, 1, 2000)
    return trained_cache


@pytest.fixture
def evaluating(tiny):
    """Returns a function that creates the configuration of a run that evaluates every two steps."""

    def create(**given):
        values = dict(
            recipe="mlp-small",
            evaluate_every=steps(2),
            evaluate_samples=100,
            sample_every=steps(0),
            log_every_steps=1,
        )
        return tiny(**{**values, **given})

    return create


def test_real_images_score_better_than_degraded_ones(caplog):
    caplog.set_level("INFO", "trainer")
    config = recipes.resolve(dict(dataset="digits"))
    data = sources.load(config)
    test = sources.load(config.replace(split="test"))
    network = classifier.load(config, data)
    reals = reference.load(data, "train", network)
    again = reference.load(data, "train", network)  # from the cache
    assert caplog.text.count("features of 1,500 real images") <= 1
    np.testing.assert_array_equal(again.features, reals.features)
    np.testing.assert_array_equal(again.moments.covariance, reals.moments.covariance)
    np.testing.assert_array_equal(reals.labels, data.labels[reals.rows])

    def metrics_of(images, labels):
        outputs = extract(network, in_batches(images))
        return registry.measure(reals.compare(outputs, labels, outputs.logits))

    draw = np.random.default_rng(0)
    labels = test.labels
    real = metrics_of(test.images, labels)
    noise = metrics_of(draw.integers(0, 256, test.images.shape, np.uint8), labels)
    few = np.resize(np.flatnonzero(labels < 5), len(labels))
    half = metrics_of(test.images[few], labels[few])
    one = metrics_of(np.repeat(test.images[:1], len(labels), 0), labels)
    wrong_labels = metrics_of(test.images, (labels + 1) % 10)
    assert real["fid"] < 0.5 * min(noise["fid"], half["fid"], one["fid"])
    assert abs(real["kid"]) < 0.5 * min(noise["kid"], half["kid"], one["kid"])
    assert noise["precision"] < 0.5 * real["precision"]
    assert one["recall"] < 0.5 * real["recall"]
    assert half["coverage"] < 0.8 * real["coverage"]
    assert one["inception_score"] < half["inception_score"] < real["inception_score"]
    assert wrong_labels["conditional_accuracy"] < 0.3 < real["conditional_accuracy"]
    assert wrong_labels["fid"] == real["fid"]


@pytest.fixture
def short(tiny, run):
    """Returns the configuration of a finished, unconditional run of two steps without EMA."""
    config = tiny(recipe="mlp-small", length=steps(2))
    run(config)
    return config


def evaluate(config, which="", **given):
    """Evaluates a finished run; returns the content of evaluation.json."""
    run_dir = RunDir(Path(config.run_dir))
    values = dict(features="auto", inception_path="", num_samples=300, seed=0)
    options = evaluator.EvaluationOptions(**{**values, **given})
    data = sources.load(config.replace(batch_size=1))
    finished_run.evaluate(run_dir, config, data, options, which)
    return json.loads(run_dir.evaluation.read_text())


def test_evaluate_writes_results_and_their_conditions(tiny, run):
    config = tiny(recipe="mlp-small", conditional=True, ema_half_life_kimg=1.0, length=steps(2))
    run(config)
    first = evaluate(config)
    for name in (
        "fid", "kid", "kid_std", "inception_score", "precision", "recall", "density", "coverage",
        "conditional_accuracy",
    ):  # fmt: skip
        assert np.isfinite(first[name]), name
    assert first["fid"] > 1
    assert first["num_samples"] == 300
    assert (first["reference_split"], first["reference_images"]) == ("train", 1500)
    assert (first["feature_network"], len(first["feature_hash"])) == ("classifier", 16)
    assert (first["ema"], first["seed"], first["compute_dtype"]) == (True, 0, "float32")
    assert (first["step"], first["kimg"]) == (2, 0.016)
    assert 0 < first["classifier_test_accuracy"] <= 1
    assert len(first["class_accuracy"]) == 10
    assert first["evaluations"][0]["fid"] == first["fid"]
    folder = Path(config.run_dir) / "evaluation"
    assert {p.name for p in folder.iterdir()} == {
        "nearest.png",
        "confusion.png",
        "interpolation.png",
    }
    assert Image.open(folder / "interpolation.png").size == (560, 560)

    def numbers(record):
        record = {k: v for k, v in record.items() if k not in ("secs", "time")}
        return {**record, "evaluations": len(record["evaluations"])}

    # Two devices give the same results, because they draw the same batches of images.
    assert numbers(evaluate(config.replace(devices="cpu:2"))) == numbers(first)
    test = evaluate(config.replace(split="test"), seed=1)
    assert (test["reference_split"], test["reference_images"]) == ("test", 297)
    assert test["fid"] != first["fid"]


def test_impossible_evaluations_are_refused(short):
    for given, message in (
        (dict(which="best"), "--checkpoint=best: "),
        (dict(which="7"), "--checkpoint=7 does not exist: .* has checkpoints of steps 0, 2"),
        (dict(features="inception"), "inception-2015-12-05.tgz from http"),
        (dict(inception_path="nowhere.pb"), "--inception_path=nowhere.pb does not exist"),
    ):
        with pytest.raises(UsageError, match=message):
            evaluate(short, **given)
    with pytest.raises(DataError, match=r"has images of 32x32x1 in 10 classes, but .* 28x28x1"):
        evaluate(short.replace(image_size=32))


def test_flags_of_the_evaluate_command_are_checked(short, trainer):
    call = ["evaluate", f"--run_dir={short.run_dir}", "--devices=cpu"]
    for flags, message in (
        (["--num_samples=5"], "--num_samples=5 is too small"),
        (["--features=vgg"], "--features='vgg' is not known"),
        (["--split=tests"], "--split='tests' is not known"),
        (["--seed=-1"], "--seed=-1 must be"),
        (
            ["--checkpoint=newest"],
            "--checkpoint=newest is not valid. Use best, latest, all, or a step",
        ),
    ):
        answer = trainer(*call, *flags)
        assert answer.returncode == ExitCode.USAGE, answer.stderr
        assert message in answer.stderr
        assert answer.stderr.count("\n") == 1
    assert trainer("evaluate").returncode == ExitCode.USAGE
    assert "--checkpoint" in trainer("evaluate", "--help").stdout


def test_all_checkpoints_are_evaluated(short):
    report = evaluate(short, which="all")
    assert [record["step"] for record in report["evaluations"]] == [0, 2]
    assert report["fid"] == min(record["fid"] for record in report["evaluations"])
    assert "conditional_accuracy" not in report  # because the run is not conditional


def evaluation_lines(run_dir):
    """Returns the lines of evaluations.jsonl without the times."""
    lines = evaluation_history.read_evaluations(RunDir(Path(run_dir)).evaluation_log)
    return [{k: v for k, v in line.items() if k != "evaluate_secs"} for line in lines]


def test_evaluations_are_recorded_and_do_not_affect_training(evaluating, run, tmp_path):
    config = evaluating(length=steps(5))
    output = run(config)
    assert [line["step"] for line in evaluation_lines(config.run_dir)] == [
        2,
        4,
        5,
    ]  # the last is at the end of the run
    assert "Evaluation at 0.016 kimg: fid " in output
    assert "Best fid: " in output
    lines = [json.loads(t) for t in (Path(config.run_dir) / "metrics.jsonl").open()]
    assert "fid" not in lines[0]
    assert lines[2]["fid"] == lines[3]["fid"] == evaluation_lines(config.run_dir)[0]["fid"]
    assert {"kid", "kid_std", "evaluate_secs", "evaluated_kimg"} <= set(lines[4])
    plain = evaluating(length=steps(5), evaluate_every=steps(0), run_dir=str(tmp_path / "plain"))
    run(plain)
    without, with_them = variables(plain.run_dir), variables(config.run_dir)
    for name, value in without.items():
        np.testing.assert_array_equal(with_them[name], value, err_msg=name)
    assert not RunDir(Path(plain.run_dir)).best_checkpoints.exists()


def replace_fids(monkeypatch, fids):
    """Makes evaluations return these FIDs in turn, and the last one from then on."""
    evaluate = during_training.Evaluator.evaluate
    remaining = list(fids)

    def evaluate_with_fid(self, sampler, check_interrupt):
        result = evaluate(self, sampler, check_interrupt)
        result.values["fid"] = remaining.pop(0) if len(remaining) > 1 else remaining[0]
        return result

    monkeypatch.setattr(during_training.Evaluator, "evaluate", evaluate_with_fid)


def best_steps(config):
    """Returns the steps of the checkpoints in best/, newest first."""
    return [
        checkpoint_step(path)
        for path in list_checkpoints(RunDir(Path(config.run_dir)).best_checkpoints)
    ]


def test_the_best_checkpoint_is_kept_and_used(evaluating, run, trainer, monkeypatch):
    replace_fids(monkeypatch, [30.0, 10.0, 20.0, 25.0, 26.0])
    config = evaluating(length=steps(10), checkpoint_every=steps(2), keep_checkpoints=1)
    output = run(config)
    assert "Best fid: 10 at 0.032 kimg" in output
    assert best_steps(config) == [4]
    assert [
        checkpoint_step(path) for path in list_checkpoints(RunDir(Path(config.run_dir)).checkpoints)
    ] == [10]
    run_dir = RunDir(Path(config.run_dir))

    def loaded(which):
        network, path = generate.load_generator(run_dir, config, which)
        return str(path.relative_to(run_dir.path)), b"".join(
            weight.tobytes() for weight in network.get_weights()
        )

    assert loaded("") == loaded("best") == loaded("4")
    assert loaded("")[0] == "best/ckpt-4"
    assert loaded("latest") == loaded("10") != loaded("4")
    with pytest.raises(UsageError, match="has checkpoints of steps 4, 10"):
        loaded("5")
    call = ["generate", f"--run_dir={config.run_dir}", "--devices=cpu", "--num=4"]
    answer = trainer(*call)
    assert "Loaded the best checkpoint" in answer.stdout
    assert "use --checkpoint=latest for the latest" in answer.stdout
    # A damaged best checkpoint is replaced by the latest, unless it was requested by name.
    for path in run_dir.best_checkpoints.glob("*.data*"):
        path.write_bytes(b"")
    assert loaded("")[0] == "checkpoints/ckpt-10"
    with pytest.raises(CheckpointError):
        loaded("best")


def test_resuming_restores_the_best_at_the_step_of_the_checkpoint(evaluating, run, monkeypatch):
    """A killed run resumes with the evaluation that was the best at its newest checkpoint."""
    fids = [30.0, 20.0, 25.0, 10.0, 15.0]
    replace_fids(monkeypatch, fids)
    config = evaluating(length=steps(10), checkpoint_every=steps(6))
    folder = RunDir(Path(config.run_dir))
    run(config)
    lines = evaluation_lines(config.run_dir)
    assert best_steps(config) == [8, 4]  # 4 was the best when the checkpoint of step 6 was saved
    # Restores the state that a kill in step 9 would have left.
    for path in [*folder.checkpoints.glob("ckpt-10*"), folder.generator]:
        path.unlink()
    replace_fids(monkeypatch, fids[3:])
    run(config)
    assert evaluation_lines(config.run_dir) == lines
    assert best_steps(config) == [8, 4]
    # Now nothing after the checkpoint is better than what was the best at its step.
    for path in [*folder.checkpoints.glob("ckpt-10*"), folder.generator]:
        path.unlink()
    replace_fids(monkeypatch, [22.0, 23.0])
    output = run(config)
    assert "Best fid: 20 at 0.032 kimg" in output
    assert best_steps(config) == [4]


def test_an_interrupted_evaluation_is_repeated(evaluating, run, monkeypatch):
    plain = evaluating(length=steps(6))
    run(plain)
    lines = evaluation_lines(plain.run_dir)
    shutil.rmtree(plain.run_dir)
    calls = []

    def stop_during_second_evaluation():
        calls.append(len(evaluation_lines(plain.run_dir)) == 1 and len(calls) > 0)
        return len(evaluation_lines(plain.run_dir)) == 1 and calls.count(True) > 3

    with pytest.raises(StoppedError):
        run(plain, stop_requested=stop_during_second_evaluation)
    assert len(evaluation_lines(plain.run_dir)) == 1
    run(plain)
    assert evaluation_lines(plain.run_dir) == lines


def test_a_run_that_stops_improving_is_complete(evaluating, run, monkeypatch):
    replace_fids(monkeypatch, [10.0, 5.0, 8.0, 9.0, 1.0])
    config = evaluating(length=steps(20), stop_after_no_gain_kimg=0.032)
    output = run(config)
    assert [line["step"] for line in evaluation_lines(config.run_dir)] == [2, 4, 6, 8]
    assert RunDir(Path(config.run_dir)).generator.exists()
    assert "Best fid: 5 at 0.032 kimg" in output
    assert "is complete: it stopped improving by step 8" in run(config)
    replace_fids(monkeypatch, [7.0, 6.0])
    output = run(config.replace(length=steps(12), stop_after_no_gain_kimg=0.0))
    assert "Evaluation at 0.08 kimg" in output


def test_results_under_other_conditions_are_not_compared(evaluating, run, monkeypatch):
    replace_fids(monkeypatch, [1.0, 2.0])
    config = evaluating(length=steps(4))
    run(config)
    assert best_steps(config) == [2]
    replace_fids(monkeypatch, [50.0, 40.0])
    run(config.replace(length=steps(6), evaluate_samples=110))
    assert best_steps(config) == [6, 4]  # step 4 was evaluated again under the new conditions


def test_impossible_evaluations_are_refused_before_training(evaluating, run, tmp_path):
    for given, message in (
        (dict(evaluate_features="inception"), "need --inception_path"),
        (dict(inception_path="nowhere"), "--inception_path=nowhere does not exist"),
        (dict(best_metric="conditional_accuracy", recipe="mlp"), "is for conditional runs"),
    ):
        with pytest.raises(UsageError, match=message):
            run(evaluating(**given))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(16):
        Image.new("L", (28, 28), 16 * k).save(pictures / f"{k}.png")
    with pytest.raises(UsageError, match="has no classes"):
        run(evaluating(dataset=str(pictures), recipe="mlp", run_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_an_incomplete_line_of_evaluations_is_ignored(tmp_path, caplog):
    path = tmp_path / "evaluations.jsonl"
    line = json.dumps({"step": 2, "kimg": 0.1, "ruler": {}, "fid": 3.0})
    path.write_text(f"{line}\n{line[:10]}")
    assert len(evaluation_history.read_evaluations(path)) == 1
    assert "damaged after line 1" in caplog.text
    assert evaluation_history.read_evaluations(tmp_path / "absent") == []


class FakeCheckpoints:
    """Saves empty checkpoints, and each step only once as `Checkpoints` does."""

    def __init__(self, folder):
        self.folder, self.newest, self.steps = folder, None, []

    def save(self, step):
        if step != self.newest:
            self.newest = step
            self.steps.append(step)
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"ckpt-{step}.index").write_text("")


def test_a_step_is_saved_again_after_a_rollback(tmp_path):
    run_dir = RunDir(tmp_path)
    saves = FakeCheckpoints(run_dir.best_checkpoints)

    def from_step(done):
        return evaluation_history.EvaluationHistory(
            run_dir, saves, "kid", {"num_samples": 5}, done=done
        )

    first = from_step(0)
    assert first.record(2, 0.2, {"kid": 0.3})
    assert first.record(4, 0.4, {"kid": 0.1})
    assert not first.record(6, 0.6, {"kid": 0.2})
    assert not first.record(
        8, 0.8, {"fid": 0.0}
    )  # has no value of the metric that selects the best
    assert first.kimg_without_improvement() == pytest.approx(0.2)
    again = from_step(3)
    assert [line["step"] for line in again.lines] == [2]
    assert again.best_line is None  # its checkpoint was removed when step 4 was better
    assert again.record(4, 0.4, {"kid": 0.5})
    assert saves.steps == [2, 4, 4]
    assert [checkpoint_step(path) for path in list_checkpoints(run_dir.best_checkpoints)] == [4]
    more = evaluation_history.EvaluationHistory(
        run_dir, saves, "precision", {"num_samples": 5}, done=4
    )
    assert more.record(6, 0.6, {"precision": 0.2})
    assert more.record(8, 0.8, {"precision": 0.4})
    assert not more.record(10, 1.0, {"precision": 0.3})


def test_a_run_without_a_best_checkpoint_uses_the_latest(short):
    run_dir = RunDir(Path(short.run_dir))
    _, path = generate.load_generator(run_dir, short)
    assert path.parent == run_dir.checkpoints
    assert [checkpoint_step(p) for p in selection.all_of(run_dir)] == [0, 2]
    with pytest.raises(CheckpointError, match="has no checkpoint that can be loaded"):
        list(finished_run.load_checkpoints(RunDir(run_dir.path / "samples"), "all", {}))


def test_evaluation_flags_set_the_configuration(trainer):
    answer = trainer("train", "--dry_run", "--evaluate_every_kimg=20", "--best_metric=kid")
    config = json.loads(answer.stdout)
    assert (config["evaluate_every"], config["best_metric"]) == ("20 kimg", "kid")
    wrong = trainer("train", "--best_metric=fidd")
    assert re.search("Did you mean fid", wrong.stderr)
    assert os.environ["XDG_CACHE_HOME"]
    assert recipes.resolve({}).evaluate_every.value == 0


def test_too_few_real_images_are_refused(tiny):
    data = sources.load(tiny())
    few = ImageSet(data.images[:5], data.labels[:5], data.class_names)
    options = evaluator.EvaluationOptions("auto", "", num_samples=100, seed=0)
    with pytest.raises(DataError, match=r"split of digits has 5 images, but .* needs 6 or more"):
        evaluator.create_evaluator(tiny(split="test"), few, options)


def test_a_run_is_not_resumed_with_another_inception_network(evaluating, run, tmp_path):
    for number in (0, 1):
        (tmp_path / f"{number}.pb").write_bytes(small_graph(classes=7 + number))
    config = evaluating(
        recipe="mlp-small", length=steps(2), inception_path=str(tmp_path / "0.pb"),
        evaluate_features="inception",
    )  # fmt: skip
    assert "Inception network in" in run(config)
    other = config.replace(length=steps(4), inception_path=str(tmp_path / "1.pb"))
    with pytest.raises(UsageError, match=r"--inception_path: the SHA-256 .* Use the same file\."):
        run(other)
    demanded = other.replace(inception_path=config.inception_path, inception_sha256="0" * 64)
    with pytest.raises(UsageError, match="--inception_sha256=0"):
        run(demanded)
