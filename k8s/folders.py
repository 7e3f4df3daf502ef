"""The overlays and components in this folder."""

import argparse
import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def subfolders(kind: str) -> list[str]:
    """Returns the names of the available overlays or components.

    Args:
      kind: "overlays" or "components".
    """
    return sorted(path.name for path in (FOLDER / kind).iterdir() if path.is_dir())


def own_components(overlay: str) -> list[str]:
    """Returns the components that an overlay lists."""
    text = (FOLDER / "overlays" / overlay / "kustomization.yaml").read_text(encoding="utf-8")
    return re.findall(r"^  - \.\./\.\./components/(\S+)$", text, re.M)


def components_of(options: argparse.Namespace) -> list[str]:
    """Returns the components of the overlay, and those of the command line that it lacks."""
    own = own_components(options.overlay)
    given = sorted(dict.fromkeys(options.component), key=lambda name: name != "gpu")
    return own + [name for name in given if name not in own]  # others refine gpu
