"""The settings that say what is trained, and how: fields of `Config`."""

import dataclasses

from trainer.config.settings import Duration, setting

NORMS = ("batch", "instance", "layer", "none")
KERNELS = ("plain", "spectral", "weight")
SCHEDULES = ("constant", "linear", "cosine", "inverse_time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained."""

    recipe: str = setting("dcgan", "settings to start from, by the name of a published system")
    networks: str = setting("", "take the networks of this recipe instead of the recipe's own")
    dataset: str = setting(
        "digits",
        "data set: digits, mnist, fashion_mnist or cifar10; or the path of your own pictures: a "
        "folder or .zip (folders train/ and test/ are splits, those below are classes; "
        "transparency becomes white), or an .npz (x and y, or x_train, y_train, ...); also at gs://",
    )
    split: str = setting("train", "images to train on", choices=("train", "test", "all"))
    image_size: int = setting(
        0,
        "side of the images in pixels; 0: the data set's own, for your own pictures the smallest "
        "side among them rounded down to a multiple of 4, at least 8 and at most 64",
        low=0,
        high=1024,
    )
    skip_bad_images: bool = setting(
        False, "leave out pictures of your own that cannot be read, instead of stopping"
    )
    conditional: bool = setting(False, "train on labels and draw the class that is asked for")
    horizontal_flip: bool = setting(False, "mirror every other image at random")
    seed: int = setting(0, "seed of weights, data order and noise", low=0, high=2**31 - 1)
    batch_size: int = setting(64, "images per step, over all devices together", low=1)
    length: Duration = setting(Duration(300, "kimg"), "how long to train", low=0, may_change=True)
    init_from: str = setting("", "start from the networks of this run directory")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """The generator and the discriminator."""

    latent_dim: int = setting(100, "size of the latent vector", low=1, high=65536)
    latent_distribution: str = setting(
        "normal",
        "distribution of the latents: N(0, 1), uniform on [-1, 1], or N(0, 1) cut off at 2",
        choices=("normal", "uniform", "truncated_normal"),
    )
    image_range: str = setting(
        "tanh",
        "images in [-1, 1] with a tanh, or in [0, 1] with a sigmoid",
        choices=("tanh", "sigmoid"),
    )
    g_width: float = setting(1.0, "multiplies the generator's filters", low=0.03, high=64)
    d_width: float = setting(1.0, "multiplies the discriminator's filters", low=0.03, high=64)
    g_conditioning: str = setting(
        "concat",
        "how labels enter the generator: next to the latents, times the latents, or next "
        "to them and as scale and shift of its batch norm",
        choices=("concat", "multiply", "batchnorm"),
    )
    d_conditioning: str = setting(
        "projection",
        "how labels enter the discriminator: projected on its features, times the "
        "image, or as one more channel",
        choices=("projection", "multiply", "concat"),
    )
    g_norm: str = setting("batch", "norm in the generator's hidden layers", choices=NORMS)
    d_norm: str = setting("none", "norm in the discriminator's, all but the first", choices=NORMS)
    g_weights: str = setting(
        "plain", "the generator's kernels: as they are or normalised", choices=KERNELS
    )
    d_weights: str = setting("plain", "norm of the discriminator's kernels", choices=KERNELS)
    d_activation: str = setting(
        "leaky_relu",
        "activation of the discriminator",
        choices=("leaky_relu", "relu", "elu", "tanh", "swish"),
    )
    d_slope: float = setting(0.2, "slope of its leaky_relu below zero", low=0, high=1)
    initializer: str = setting(
        "glorot",
        "initial weights: Glorot's or He's uniform, N(0, 0.02) or orthogonal",
        choices=("glorot", "he", "normal", "orthogonal"),
    )
    bn_momentum: float = setting(0.99, "momentum of batch norm's moving statistics", low=0, high=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Losses, updates and optimizers."""

    loss: str = setting(
        "nonsaturating",
        "adversarial loss",
        choices=("nonsaturating", "minimax", "least_squares", "hinge", "wasserstein"),
    )
    gradient_penalty: float = setting(
        0.0, "weight of the penalty on D's gradient between reals and fakes (WGAN-GP: 10)", low=0
    )
    d_clip: float = setting(
        0.0, "clip the discriminator's weights to this size after each update (WGAN: 0.01)", low=0
    )
    smooth_real: float = setting(0.0, "label smoothing: reals count 1 - this", low=0, high=0.5)
    smooth_fake: float = setting(
        0.0, "two-sided label smoothing: fakes count this", low=0, high=0.5
    )
    flip_labels: float = setting(
        0.0, "share of the discriminator's images with the label flipped", low=0, high=0.5
    )
    d_input_noise: float = setting(
        0.0, "standard deviation of Gaussian noise on the discriminator's input", low=0, high=10
    )
    d_layer_noise: float = setting(
        0.0, "the same on the inputs of its hidden layers", low=0, high=10
    )
    noise_decay_kimg: float = setting(
        0.0, "kimg over which both noises fall linearly to 0; 0: they stay", low=0
    )
    d_update: str = setting(
        "joint",
        "how the discriminator sees reals and fakes: one batch, two batches and one "
        "update, or two updates",
        choices=("joint", "separate", "sequential"),
    )
    simultaneous: bool = setting(
        False, "update both networks from the same weights and the same fakes"
    )
    reuse_fakes: bool = setting(
        False,
        "update the generator by the fakes of the discriminator's last update instead of by "
        "fresh ones, which are another pass through the generator",
    )
    d_steps: int = setting(1, "discriminator updates per generator update", low=1, high=100)
    repeat_reals: bool = setting(False, "use the same real batch in all d_steps")
    optimizer: str = setting(
        "adam", "optimizer of both networks", choices=("adam", "rmsprop", "sgd")
    )
    g_lr: float = setting(2e-4, "learning rate of the generator", low=0, high=10)
    d_lr: float = setting(2e-4, "learning rate of the discriminator", low=0, high=10)
    g_lr_schedule: str = setting("constant", "how the generator's rate falls", choices=SCHEDULES)
    d_lr_schedule: str = setting("constant", "the same of the discriminator's", choices=SCHEDULES)
    lr_decay_kimg: float = setting(
        0.0, "kimg after which a linear or cosine schedule has reached lr_end", low=0
    )
    lr_end: float = setting(0.0, "share of the rate left then", low=0, high=1)
    g_lr_decay_per_kimg: float = setting(
        0.0, "inverse_time: the generator's rate is divided by 1 + this times kimg", low=0
    )
    d_lr_decay_per_kimg: float = setting(
        0.0, "inverse_time: the discriminator's rate is divided by 1 + this times kimg", low=0
    )
    beta1: float = setting(0.9, "first decay of Adam", low=0, high=0.9999)
    beta2: float = setting(0.999, "second decay of Adam; of RMSprop its only one", low=0, high=1)
    momentum: float = setting(0.9, "momentum of SGD", low=0, high=0.9999)
    ema_half_life_kimg: float = setting(
        0.0, "half-life of the generator's moving average; 0: no average", low=0
    )
