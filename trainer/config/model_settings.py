"""Settings of what is trained and how: the data, the networks, the objective."""

import dataclasses

from trainer.config.settings import FilePath, setting
from trainer.config.update_rule import UPDATE_RULES

NORMS = ("batch", "instance", "layer", "none")
KERNELS = ("plain", "spectral", "weight")
CONDITIONAL_NORM = ("batchnorm", "batchnorm_alone")  # values of g_conditioning
SCHEDULES = ("constant", "linear", "cosine", "inverse_time")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data."""

    split: str = setting(
        "train", "split of the data set to train on", choices=("train", "test", "all")
    )
    skip_bad_images: bool = setting(
        False, "skip pictures of your own that cannot be read instead of stopping"
    )
    horizontal_flip: bool = setting(False, "flip each training image horizontally at random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks."""

    networks: FilePath = setting(
        "", "recipe whose networks to train under this recipe's loop (default: its own)"
    )
    hyperparameters: str = setting(
        "",
        "hyper-parameters that the recipe of the networks declares for itself, as "
        "NAME=VALUE,NAME=VALUE; those that are not given keep their defaults",
        legacy="",
    )
    latent_dim: int = setting(100, "size of the latent vector", bounds=(1, 65536))
    latent_distribution: str = setting(
        "normal",
        "distribution of the latent vectors: N(0, 1), uniform on [-1, 1], or N(0, 1) truncated "
        "at 2 standard deviations",
        choices=("normal", "uniform", "truncated_normal"),
    )
    image_range: str = setting(
        "tanh",
        "output activation of the generator: tanh with images in [-1, 1], or sigmoid with images "
        "in [0, 1]. Networks with a linear output have the range alone",
        choices=("tanh", "sigmoid"),
    )
    g_width: float = setting(
        1.0, "factor that scales the number of filters of the generator", bounds=(0.03, 64)
    )
    d_width: float = setting(
        1.0, "factor that scales the number of filters of the discriminator", bounds=(0.03, 64)
    )
    g_conditioning: str = setting(
        "concat",
        "how class labels enter a conditional generator: concatenated to the latent vector as "
        "they are (concat) or as an embedding of its size (embedding), multiplied into it as an "
        "embedding (multiply), concatenated and also as the scale and shift of the batch norms "
        "(batchnorm), or as these scales and shifts alone (batchnorm_alone)",
        choices=("concat", "embedding", "multiply", *CONDITIONAL_NORM),
    )
    d_conditioning: str = setting(
        "projection",
        "how class labels enter a conditional discriminator: as a projection on its features, as "
        "an embedding multiplied into the image, or as an additional image channel",
        choices=("projection", "multiply", "concat"),
    )
    g_norm: str = setting(
        "batch", "normalisation in the hidden layers of the generator", choices=NORMS
    )
    d_norm: str = setting(
        "none",
        "normalisation in the hidden layers of the discriminator, except the first",
        choices=NORMS,
    )
    g_weights: str = setting(
        "plain",
        "normalisation of the generator's kernels: none, spectral or weight normalisation",
        choices=KERNELS,
    )
    d_weights: str = setting(
        "plain",
        "normalisation of the discriminator's kernels: none, spectral or weight normalisation",
        choices=KERNELS,
    )
    d_activation: str = setting(
        "leaky_relu",
        "activation function of the discriminator",
        choices=("leaky_relu", "relu", "elu", "tanh", "swish"),
    )
    d_slope: float = setting(
        0.2, "negative slope of the discriminator's leaky_relu activations", bounds=(0, 1)
    )
    initializer: str = setting(
        "glorot",
        "initializer of the kernels: Glorot uniform, He uniform, N(0, 0.02), the same truncated at "
        "2 standard deviations, or orthogonal",
        choices=("glorot", "he", "normal", "truncated_normal", "orthogonal"),
    )
    bn_momentum: float = setting(
        0.99, "momentum of the moving statistics of batch norm", bounds=(0, 1)
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTuning:
    """Fine-tuning."""

    init_from: FilePath = setting(
        "", "run directory, or gs://BUCKET/PATH, whose networks initialise this run's networks"
    )
    d_freeze_layers: int = setting(
        0,
        "number of weight layers of the discriminator, counted from the image, that keep the "
        "weights of --init_from and are not trained (FreezeD)",
        bounds=(0, None),
        legacy=0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
    """Objective and updates."""

    loss: str = setting("nonsaturating", "adversarial loss")
    gradient_penalty: float = setting(
        0.0,
        "weight of the penalty on the norm of the discriminator's gradient at points between "
        "reals and fakes (WGAN-GP uses 10); 0 disables it",
        bounds=(0, None),
    )
    d_clip: float = setting(
        0.0,
        "limit to which the discriminator's weights are clipped after each update (WGAN uses "
        "0.01); 0 disables clipping",
        bounds=(0, None),
    )
    smooth_real: float = setting(
        0.0,
        "one-sided label smoothing: the discriminator's target for reals is 1 minus this value",
        bounds=(0, 0.5),
    )
    smooth_fake: float = setting(
        0.0,
        "two-sided label smoothing: the discriminator's target for fakes is this value",
        bounds=(0, 0.5),
    )
    flip_labels: float = setting(
        0.0,
        "fraction of the discriminator's images whose real or fake label is flipped at random",
        bounds=(0, 0.5),
    )
    d_input_noise: float = setting(
        0.0,
        "standard deviation of the Gaussian noise added to the images that the discriminator sees",
        bounds=(0, 10),
    )
    d_layer_noise: float = setting(
        0.0,
        "standard deviation of the Gaussian noise added to the inputs of the discriminator's "
        "hidden layers",
        bounds=(0, 10),
    )
    noise_decay_kimg: float = setting(
        0.0,
        "kimg over which d_input_noise and d_layer_noise decrease linearly to 0; 0 keeps them "
        "constant",
        bounds=(0, None),
    )
    update_rule: str = setting(
        "joint",
        "order of the updates of a step. joint updates the discriminator with one batch of reals "
        "and fakes, separate with a batch of each, whose losses are summed, and sequential first "
        "with the reals and then with the fakes. The generator is updated with new fakes; -reuse "
        "takes those of the discriminator's last update instead, which saves a forward pass, and "
        "-simultaneous also computes both gradients before either network changes",
        choices=UPDATE_RULES,
        legacy="joint",
    )
    d_steps: int = setting(1, "discriminator updates per generator update", bounds=(1, 100))
    repeat_reals: bool = setting(
        False, "use the same batch of reals for all discriminator updates of a step"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizers:
    """Optimizers."""

    optimizer: str = setting(
        "adam", "optimizer of both networks", choices=("adam", "rmsprop", "sgd")
    )
    g_lr: float = setting(2e-4, "learning rate of the generator", bounds=(0, 10))
    d_lr: float = setting(2e-4, "learning rate of the discriminator", bounds=(0, 10))
    g_lr_schedule: str = setting(
        "constant", "learning-rate schedule of the generator", choices=SCHEDULES
    )
    d_lr_schedule: str = setting(
        "constant", "learning-rate schedule of the discriminator", choices=SCHEDULES
    )
    lr_decay_kimg: float = setting(
        0.0,
        "kimg over which the linear and cosine learning-rate schedules decay; the rate is "
        "constant afterwards",
        bounds=(0, None),
    )
    lr_end: float = setting(
        0.0,
        "final learning rate of the linear and cosine schedules, as a fraction of the initial rate",
        bounds=(0, 1),
    )
    g_lr_decay_per_kimg: float = setting(
        0.0,
        "decay of the inverse_time schedule of the generator: its learning rate is divided by "
        "1 + decay * kimg",
        bounds=(0, None),
    )
    d_lr_decay_per_kimg: float = setting(
        0.0,
        "decay of the inverse_time schedule of the discriminator: its learning rate is divided by "
        "1 + decay * kimg",
        bounds=(0, None),
    )
    beta1: float = setting(0.9, "decay rate of Adam's first-moment estimate", bounds=(0, 0.9999))
    beta2: float = setting(
        0.999,
        "decay rate of Adam's second-moment estimate, or of RMSprop's mean square",
        bounds=(0, 1),
    )
    rmsprop_epsilon: float = setting(
        1e-7,
        "constant that RMSprop adds to the mean square inside the square root",
        bounds=(0, 1),
        legacy=1e-7,
    )
    momentum: float = setting(0.9, "momentum of the SGD optimizer", bounds=(0, 0.9999))
    ema_half_life_kimg: float = setting(
        0.0,
        "half-life in kimg of the exponential moving average (EMA) of the generator's weights, "
        "from which images are drawn; 0 disables it",
        bounds=(0, None),
    )
