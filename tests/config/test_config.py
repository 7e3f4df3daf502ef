"""Settings: defaults, ranges, JSON, and the settings that may change when a run resumes."""

import dataclasses
import json

import pytest

from trainer import recipes
from trainer.config import Config
from trainer.config.compatibility import frozen_differences
from trainer.config.schedules import Schedule
from trainer.config.settings import Duration
from trainer.errors import UsageError


def test_json_round_trip_keeps_every_setting():
    config = recipes.resolve(
        dict(recipe="cgan", dataset="mnist", seed=7, length=Duration(2.5, "epochs"))
    )
    restored = Config.from_json(config.to_json(), "config.json")
    assert restored == config
    assert json.loads(config.to_json())["format_version"] == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(batch_size=0), "--batch_size=0 is too small. Use 1 or more."),
        (dict(seed=-1), "--seed=-1 is too small"),
        (dict(g_lr=11.0), "--g_lr=11.0 is too large. Use values from 0 to 10."),
        (dict(g_lr=float("nan")), "--g_lr=nan is not finite. Use values from 0 to 10."),
        (dict(length=Duration(-1, "kimg")), "--kimg=-1 is too small"),
        (dict(loss="hnge"), "--loss='hnge' is not known. Did you mean hinge?"),
        (dict(recipe="dcgn"), "--recipe='dcgn' is not known. Did you mean dcgan?"),
        (dict(networks="cgn"), "--networks='cgn' is not known. Did you mean cgan?"),
        (dict(batch_size="8"), "--batch_size='8' must be of type int."),
        (dict(g_lr=True), "--g_lr=True must be of type float or schedule."),
        (
            dict(g_lr="linear 1e-4 11 over 3 kimg"),
            "--g_lr='linear 0.0001 11 over 3 kimg' is too large. Use values from 0 to 10.",
        ),
        (
            dict(d_lr="cosin 1 2"),
            "--d_lr='cosin 1 2' is not valid (it has none of the known forms). Give a number or "
            "one of the forms 'linear START END over SPAN',",
        ),
        (dict(augment_strength="adaptiv", augment="ada"), "one of the forms 'auto', 'adaptive', "),
        (dict(augment_strength=1.5), "--augment_strength=1.5 is too large. Use values"),
        (dict(beta2=1.0), "--beta2=1.0 is too large. Use values from 0 to 0.9999."),
        (dict(beta2="linear 0.9 1 over 3 kimg"), "is too large. Use values from 0 to 0.9999."),
        (dict(g_lr="linear 1 0 over inf kimg"), "('inf' must be positive and finite). Give a"),
        (
            dict(augment="diffaugment", augment_policy="color,xflip"),
            "--augment_policy=color,xflip: 'xflip' is not known. Known: color, translation, ",
        ),
        (dict(augment_strength="adaptive"), "needs an augmentation. Add --augment=ada"),
        (
            dict(augment="ada", loss="wasserstein", d_clip=0.01),
            "follows the signs of the discriminator's logits, which mean nothing with --loss=w",
        ),
        (
            dict(update_rule="joint-simultaneous", d_steps=2),
            "--update_rule=joint-simultaneous needs one discriminator update",
        ),
        (dict(inception_sha256="G" * 64), "is not a SHA-256. Use 64 hexadecimal digits"),
        (dict(inception_sha256="abc"), "--inception_sha256=abc is not a SHA-256"),
    ],
)
def test_invalid_settings_are_one_line_usage_errors(given, message):
    with pytest.raises(UsageError) as error:
        recipes.resolve(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "run/config.json is not JSON"),
        ("[]", "holds no configuration"),
        ("{}", "format_version None"),
        ('{"format_version": 1, "batchsize": 3}', "Did you mean batch_size?"),
        ('{"format_version": 1, "length": "3 parsecs"}', "length: '3 parsecs' is not a number"),
        ('{"format_version": 1, "batch_size": -3}', "run/config.json: --batch_size=-3"),
    ],
)
def test_invalid_json_is_a_usage_error(text, message):
    with pytest.raises(UsageError) as error:
        Config.from_json(text, "run/config.json")
    assert message in str(error.value)


def test_durations_are_converted_to_images_and_steps():
    assert Duration(500, "steps").images(64, 1000) == 32000
    assert Duration(2, "epochs").images(64, 70000) == 140000
    assert Duration(0.1, "kimg").steps(64, 1000) == 2  # rounded up to whole steps
    assert Duration.parse(str(Duration(2.5, "epochs"))) == Duration(2.5, "epochs")


def test_frozen_differences_ignore_length_intervals_devices_and_run_dir():
    old = recipes.resolve({})
    new = old.replace(
        length=Duration(1, "steps"), devices="cpu:2", run_dir="x", log_every_secs=1.0, g_lr=1e-3
    )
    assert frozen_differences(old, new) == ["g_lr: 0.0002 -> 0.001"]


def test_augmentation_is_resolved_into_explicit_settings():
    config = recipes.resolve(dict(augment="ada"))
    assert (config.augment_policy, config.augment_strength) == ("blit,geometry,color", "adaptive")
    assert recipes.resolve(dict(augment="diffaugment")).augment_strength == 1.0
    assert recipes.resolve({}, config) == config
    scheduled = recipes.resolve(dict(augment="ada", augment_strength="cosine 0 0.55 over 9 kimg"))
    assert str(scheduled.augment_strength) == "cosine 0 0.55 over 9 kimg"


def test_another_augmentation_than_the_recipes_has_its_own_policy(monkeypatch):
    loop = dict(augment="ada", augment_policy="blit", augment_strength=0.5)
    changed = dataclasses.replace(recipes.RECIPES["mlp"], loop=loop)
    monkeypatch.setitem(recipes.RECIPES, "mlp", changed)
    assert recipes.resolve(dict(recipe="mlp")).augment_policy == "blit"
    for augment, policy in (("diffaugment", "color,translation,cutout"), ("none", "")):
        assert recipes.resolve(dict(recipe="mlp", augment=augment)).augment_policy == policy


def test_recipes_have_their_published_settings():
    expected = {
        "dcgan-sigmoid": dict(
            latent_dim=100,
            latent_distribution="uniform",
            image_range="sigmoid",
            update_rule="joint",
            optimizer="rmsprop",
            # The published decay is 6e-8 per step of 64 images, and half of it for G.
            d_lr=Schedule("inverse_time", 2e-4, decay_per_kimg=pytest.approx(6e-8 / 0.064)),
            g_lr=Schedule("inverse_time", 1e-4, decay_per_kimg=pytest.approx(3e-8 / 0.064)),
            batch_size=64,
            length=Duration(40000, "steps"),
            sample_every=Duration(500, "steps"),
            sample_grid=4,
        ),
        "mlp-small": dict(
            latent_dim=100,
            image_range="tanh",
            update_rule="sequential",
            optimizer="adam",
            g_lr=1e-3,
            d_lr=1e-3,
            bn_momentum=0.8,
            batch_size=16,
            length=Duration(10000, "steps"),
            sample_every=Duration(200, "steps"),
            sample_grid=5,
        ),
        "dcgan-kstep": dict(
            latent_dim=150,
            latent_distribution="normal",
            image_range="sigmoid",
            split="all",
            update_rule="joint",
            repeat_reals=True,
            d_steps=1,
            beta1=0.5,
            g_lr=1e-5,
            d_lr=3e-5,
            batch_size=64,
            length=Duration(30, "epochs"),
            sample_every=Duration(2, "epochs"),
            sample_grid=9,
        ),
        "cgan": dict(
            latent_dim=100,
            conditional=True,
            g_conditioning="multiply",
            d_conditioning="multiply",
            update_rule="sequential",
            beta1=0.5,
            g_lr=2e-4,
            d_lr=2e-4,
            batch_size=128,
        ),
        "mlp": dict(
            latent_dim=100,
            update_rule="separate-simultaneous",
            g_lr=1e-4,
            d_lr=1e-4,
            batch_size=128,
            length=Duration(50, "epochs"),
            sample_every=Duration(1, "epochs"),
            sample_grid=4,
        ),
        "dcgan-studiogan": dict(
            latent_dim=128,
            image_size=32,
            d_steps=2,
            repeat_reals=False,
            horizontal_flip=True,
            initializer="orthogonal",
            beta1=0.5,
            batch_size=64,
            length=Duration(200000, "steps"),
            conditional=False,
            ema_half_life_kimg=0.0,
        ),
        "sngan": dict(
            latent_dim=128,
            g_conditioning="batchnorm_alone",
            d_conditioning="projection",
            d_weights="spectral",
            d_activation="relu",
            bn_momentum=0.9,
            loss="hinge",
            update_rule="separate",
            d_steps=5,
            repeat_reals=False,
            optimizer="adam",
            beta1=0.0,
            beta2=0.9,
            g_lr=Schedule("linear", 2e-4, 0.0, percent=100.0),
            d_lr=Schedule("linear", 2e-4, 0.0, percent=100.0),
            batch_size=64,
            length=Duration(100000, "steps"),
            conditional=False,
            horizontal_flip=False,
            ema_half_life_kimg=0.0,
        ),
        "r3gan": dict(
            latent_dim=64,
            g_conditioning="embedding",
            d_conditioning="projection",
            g_norm="none",
            loss="relativistic",
            update_rule="joint",
            d_steps=1,
            optimizer="adam",
            beta1=0.0,
            **{
                name: Schedule("cosine", start, end, span_kimg=20000.0)
                for name, start, end in (
                    ("g_lr", 2e-4, 5e-5),
                    ("d_lr", 2e-4, 5e-5),
                    ("beta2", 0.9, 0.99),
                    ("r1", 0.05, 0.005),
                    ("r2", 0.05, 0.005),
                    ("augment_strength", 0.0, 0.55),
                    ("ema_half_life_kimg", 0.0, 5000.0),
                )
            },
            ema_ramp=0.0,
            penalty_every=1,
            augment="ada",
            augment_policy="blit,geometry,color:0.5,cutout",
            batch_size=512,
            length=Duration(250000, "kimg"),
            conditional=False,
            horizontal_flip=False,  # digits
        ),
    }
    assert set(recipes.RECIPES) == {"dcgan", *expected}
    for name, settings in expected.items():
        config = dataclasses.asdict(recipes.resolve(dict(recipe=name, dataset="mnist")))
        actual = {key: config[key] for key in settings}
        assert actual == {
            k: dataclasses.asdict(v) if isinstance(v, (Duration, Schedule)) else v
            for k, v in settings.items()
        }, name
    assert recipes.resolve(dict(recipe="mlp", dataset="cifar10")).batch_size == 64


def test_recipes_have_settings_for_image_sizes():
    """Checks that sizes which are not published take the settings of the next smaller one."""

    def gamma_and_batch(*sides, **given):
        config = recipes.resolve(dict(recipe="r3gan", **given))
        sized = recipes.adapt_to_size(config, sides, given)
        assert sized.r1 == sized.r2 or "r1" in given
        return str(sized.r1), sized.batch_size

    at_32 = ("cosine 0.05 0.005 over 20000 kimg", 512)
    at_64 = ("cosine 2 0.2 over 20000 kimg", 256)
    assert [gamma_and_batch(28, 28), gamma_and_batch(32, 64)] == [at_32, at_32]
    assert [gamma_and_batch(64, 64), gamma_and_batch(255, 300)] == [at_64, at_64]
    assert gamma_and_batch(256, 256) == ("cosine 150 15 over 20000 kimg", 256)
    assert gamma_and_batch(64, 64, r1=1.0, batch_size=32) == ("1.0", 32)
    other = recipes.resolve(dict(recipe="r3gan", augment="diffaugment"))
    assert recipes.adapt_to_size(other, (64, 64), {"augment"}).augment_strength == 1.0


def test_networks_and_loop_are_independent():
    config = recipes.resolve(dict(recipe="mlp-small", networks="dcgan-kstep"))
    assert (config.latent_dim, config.image_range) == (150, "sigmoid")
    assert (config.update_rule, config.batch_size, config.g_lr) == ("sequential", 16, 1e-3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(penalty_every=4), "--penalty_every=4 has no effect without a penalty. Add --r1, "),
        (dict(recipe="r3gan", r1=0.0, r2=0.0, penalty_every=4), "without a penalty"),
        (dict(augment_strength=0.5), "--augment_strength=0.5 has no effect without an augment"),
        (dict(augment_target=0.3), "--augment_target=0.3 has no effect unless the augmentation"),
        (dict(augment="diffaugment", augment_speed_kimg=9.0), "--augment_strength=adaptive, or "),
        (dict(optimizer="sgd", beta2="linear 0.9 0.99 over 9 kimg"), "Add --optimizer=adam or rms"),
        (dict(optimizer="rmsprop", beta1=0.5), "--beta1=0.5 has no effect with this optimizer."),
        (dict(momentum=0.5), "Add --optimizer=sgd, or omit the flag."),
        (dict(rmsprop_epsilon=1e-3), "Add --optimizer=rmsprop, or omit the flag."),
        (dict(g_lr_decay_per_kimg=0.1), "without --g_lr_schedule=inverse_time. Use --g_lr='inv"),
        (dict(lr_decay_kimg=20.0), "--lr_decay_kimg=20.0 has no effect without --g_lr_schedule"),
        (dict(metrics_address="::1"), "--metrics_address=::1 has no effect without the metrics"),
        (dict(noise_decay_kimg=2.0), "--noise_decay_kimg=2.0 has no effect without noise. Use "),
    ],
)
def test_settings_without_an_effect_are_refused_in_new_runs(given, message):
    with pytest.raises(UsageError) as error:
        recipes.resolve(given)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    stored = recipes.resolve({})  # of a version that accepted them
    assert recipes.resolve(given, stored.replace(penalty_every=4))


def test_settings_may_be_given_with_their_defaults(monkeypatch):
    """Also, a recipe may have what a setting needs only for some sizes of images."""
    recipes.resolve(dict(penalty_every=1, augment_target=0.6, momentum=0.9, lr_decay_kimg=0.0))
    recipes.resolve(dict(recipe="r3gan", optimizer="sgd"))  # the recipe's beta2, which nobody gave
    sized = dataclasses.replace(recipes.RECIPES["mlp"], by_size={64: dict(r1=1.0)})
    monkeypatch.setitem(recipes.RECIPES, "mlp", sized)
    given = dict(recipe="mlp", update_rule="separate", penalty_every=4)
    assert recipes.resolve(given).penalty_every == 4
