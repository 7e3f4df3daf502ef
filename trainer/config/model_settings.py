"""Settings of what is trained and how: the data, the networks, the objective."""

import dataclasses

from trainer.config.augment_policy import AUGMENTATIONS
from trainer.config.schedules import Value
from trainer.config.settings import FilePath, setting
from trainer.config.update_rule import UPDATE_RULES

NORMS = ("batch", "instance", "layer", "none")
KERNELS = ("plain", "spectral", "weight")
CONDITIONAL_NORM = ("batchnorm", "batchnorm_alone")  # values of g_conditioning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Data."""

    split: str = setting(
        "train", "split of the data set to train on", choices=("train", "test", "all")
    )
    skip_bad_images: bool = setting(
        False, "skip pictures of your own that cannot be read instead of stopping"
    )
    fit: str = setting(
        "auto",
        "how pictures of other proportions are brought to the image size: crop uses their middle, "
        "pad adds black borders (transparent ones with 4 channels), stretch changes their "
        "proportions, and auto means pad if pictures are transparent, and crop otherwise",
        choices=("auto", "crop", "pad", "stretch"),
        legacy="crop",
    )
    channels: str = setting(
        "auto",
        "channels of the images: 1 for gray, 3 for RGB, 4 for RGB and alpha, opaque for 1 if all "
        "pictures are gray and 3 otherwise, and auto for 4 if most pictures are transparent and "
        "opaque otherwise. Without alpha, transparent pixels become white",
        choices=("auto", "opaque", "1", "3", "4"),
        legacy="opaque",
    )
    horizontal_flip: bool = setting(False, "flip each training image horizontally at random")
    shuffle: str = setting(
        "auto",
        "order of the images in an epoch: full (any order), or blocks, which reads neighbouring "
        "images together and mixes blocks of them. auto selects blocks if the images are read "
        "from a network disk during training, and full otherwise",
        choices=("auto", "full", "blocks"),
        legacy="full",
    )
    class_balance: str = setting(
        "none",
        "how often the classes of an uneven data set are shown: none shows every image once per "
        "epoch, equal shows all classes equally often, so that images of small classes are "
        "repeated",
        choices=("none", "equal"),
        legacy="none",
    )
    cache_dir: FilePath = setting(
        "",
        "folder of the cache of decoded pictures, which runs and workers may share (default: in "
        "the user's cache)",
        scope="start",
        legacy="",
    )
    cache_gib: float = setting(
        0.0,
        "size that the cache of decoded pictures may reach, in GiB; the least recently used "
        "pictures are removed first. 0 means as much as the disk holds",
        bounds=(0, None),
        scope="start",
        legacy=0.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Networks:
    """Networks."""

    networks: FilePath = setting(
        "", "recipe whose networks to train under this recipe's loop (default: its own)"
    )
    uneven_sides: str = setting(
        "crop",
        "what networks do whose stages double the side, if a side of the images is not 4, 5, 6 or "
        "7 times a power of two: crop builds them for the next such side and crops their images, "
        "keep begins with what is left when the side, a multiple of 4, cannot be halved",
        choices=("crop", "keep"),
        legacy="keep",
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
        "in [0, 1]. Networks whose output is linear use only the range of the images",
        choices=("tanh", "sigmoid"),
    )
    g_width: float = setting(
        1.0, "factor that scales the number of filters of the generator", bounds=(0.01, 64)
    )
    d_width: float = setting(
        1.0, "factor that scales the number of filters of the discriminator", bounds=(0.01, 64)
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
    g_upsampling: str = setting(
        "transposed",
        "transposed convolutions of stride 2 in the generator: as they are, or with the kernels of "
        "nearest-neighbour resizing and a convolution (resize), which leave no checkerboard",
        choices=("transposed", "resize"),
        legacy="transposed",
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
    gradient_penalty: Value = setting(
        0.0,
        "weight of the penalty on the norm of the discriminator's gradient at points between "
        "reals and fakes (WGAN-GP uses 10); 0 disables it",
        bounds=(0, None),
    )
    r1: Value = setting(
        0.0,
        "weight gamma of the penalty R1: gamma / 2 times the squared norm of the discriminator's "
        "gradient at the reals; 0 disables it",
        bounds=(0, None),
        legacy=0.0,
    )
    r2: Value = setting(
        0.0,
        "weight gamma of the penalty R2, the same at the fakes; 0 disables it",
        bounds=(0, None),
        legacy=0.0,
    )
    penalty_every: int = setting(
        1,
        "steps from one with --gradient_penalty, --r1 and --r2 to the next, in which they weigh "
        "so many times as much",
        bounds=(1, 1000),
        legacy=1,
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
    d_input_noise: Value = setting(
        0.0,
        "standard deviation of the Gaussian noise added to the images that the discriminator sees",
        bounds=(0, 10),
    )
    d_layer_noise: Value = setting(
        0.0,
        "standard deviation of the Gaussian noise added to the inputs of the discriminator's "
        "hidden layers",
        bounds=(0, 10),
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
class Augmentation:
    """Augmentation."""

    augment: str = setting(
        "none",
        "augmentation of the images that the discriminator sees, reals and fakes alike, in the "
        "updates of both networks",
        choices=AUGMENTATIONS,
        legacy="none",
    )
    augment_policy: str = setting(
        "",
        "transformations of the augmentation, as NAME,NAME:FACTOR with factors from 0 to 1 of "
        "their probabilities: color, translation and cutout of diffaugment; blit, geometry, color "
        "and cutout, or single ones such as xflip, of ada (default: color,translation,cutout or "
        "blit,geometry,color)",
        legacy="",
    )
    augment_strength: Value | str = setting(
        "auto",
        "probability of each transformation. adaptive starts at 0 and holds the mean sign of the "
        "discriminator's logits on reals at --augment_target; auto is adaptive for ada and 1 for "
        "diffaugment",
        choices=("auto", "adaptive"),
        bounds=(0, 1),
        legacy="auto",
    )
    augment_target: float = setting(
        0.6,
        "mean sign of the discriminator's logits on reals above which the adaptive strength rises",
        bounds=(-1, 1),
        legacy=0.6,
    )
    augment_speed_kimg: float = setting(
        500.0,
        "kimg in which the adaptive strength changes by 1",
        bounds=(0.001, None),
        legacy=500.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizers:
    """Optimizers."""

    optimizer: str = setting(
        "adam", "optimizer of both networks", choices=("adam", "rmsprop", "sgd")
    )
    g_lr: Value = setting(2e-4, "learning rate of the generator", bounds=(0, 10))
    d_lr: Value = setting(2e-4, "learning rate of the discriminator", bounds=(0, 10))
    beta1: float = setting(0.9, "decay rate of Adam's first-moment estimate", bounds=(0, 0.9999))
    beta2: Value = setting(
        0.999,
        "decay rate of Adam's second-moment estimate, or of RMSprop's mean square",
        bounds=(0, 0.9999),
    )
    rmsprop_epsilon: float = setting(
        1e-7,
        "constant that RMSprop adds to the mean square inside the square root",
        bounds=(0, 1),
        legacy=1e-7,
    )
    momentum: float = setting(0.9, "momentum of the SGD optimizer", bounds=(0, 0.9999))
    ema_half_life_kimg: Value = setting(
        0.0,
        "half-life in kimg of the exponential moving average (EMA) of the generator's weights, "
        "from which images are drawn; 0 disables it",
        bounds=(0, None),
    )
    ema_ramp: float = setting(
        0.05,
        "largest half-life of the EMA as a share of the images seen, so that it leaves the initial "
        "weights behind early; 0 sets no limit",
        bounds=(0, 1),
        legacy=0.05,
    )
