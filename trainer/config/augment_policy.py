"""The augmentation of the discriminator's images: its transformations as a setting."""

from collections.abc import Mapping
from typing import Any

from trainer.errors import UsageError, one_of

AUGMENTATIONS = ("none", "diffaugment", "ada")

# The transformations of each augmentation, by the name of their group in its publication.
# DiffAugment: Zhao et al., arXiv:2006.10738. ADA: Karras et al., arXiv:2006.06676, appendix B.
GROUPS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "none": {},
    "diffaugment": {
        "color": ("color",),
        "translation": ("translation",),
        "cutout": ("cutout",),
    },
    "ada": {
        "blit": ("xflip", "rotate90", "xint"),
        "geometry": ("scale", "rotate", "aniso", "xfrac"),
        "color": ("brightness", "contrast", "lumaflip", "hue", "saturation"),
        "cutout": ("cutout",),
    },
}
DEFAULT_POLICIES = {
    "none": "",
    "diffaugment": "color,translation,cutout",
    "ada": "blit,geometry,color",
}


def parse(augment: str, text: str) -> dict[str, float]:
    """Returns the transformations of a policy with the factor of each one's probability.

    Args:
      augment: one of AUGMENTATIONS.
      text: names of groups or of single transformations, as NAME,NAME:FACTOR.  A later entry
        overrides an earlier one.  An empty text stands for the published transformations.

    Raises:
      UsageError: for an unknown name, or a factor that is not a number from 0 to 1.
    """
    groups = GROUPS[augment]
    names = {**{name: (name,) for group in groups.values() for name in group}, **groups}
    text = text or DEFAULT_POLICIES[augment]
    factors: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, colon, factor = (piece.strip() for piece in part.partition(":"))
        if augment == "none":
            raise UsageError(
                f"--augment_policy={text!r} needs an augmentation. Add --augment=diffaugment or "
                "ada."
            )
        one_of("--augment_policy", name, names, part_of=text)
        try:
            value = float(factor) if colon else 1.0
        except ValueError:
            value = -1.0
        if not 0.0 <= value <= 1.0:
            raise UsageError(
                f"--augment_policy={text} is not valid at {part!r}. Write NAME or NAME:FACTOR "
                "with a factor from 0 to 1."
            )
        factors |= dict.fromkeys(names[name], value)
    if augment != "none" and not any(factors.values()):
        raise UsageError(
            f"--augment_policy={text} has no transformation. Use --augment=none, or name some of "
            f"{', '.join(names)}."
        )
    return {name: factor for name, factor in factors.items() if factor}


def complete(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings in which the policy and the strength of the augmentation are explicit."""
    augment = settings.get("augment", "none")
    completed = dict(settings)
    if augment in DEFAULT_POLICIES and augment != "none":
        if not completed.get("augment_policy"):
            completed["augment_policy"] = DEFAULT_POLICIES[augment]
        if completed.get("augment_strength", "auto") == "auto":
            completed["augment_strength"] = "adaptive" if augment == "ada" else 1.0
    return completed
