"""What is recorded of each picture of a prepared set, besides its pixels."""

import hashlib

import numpy as np
from PIL import Image

DIGEST_BYTES = 16
THUMB_SIDE = 8  # pixels
ROW = np.dtype([
    ("digest", np.uint8, DIGEST_BYTES),  # of the file's content
    ("thumb", np.uint8, THUMB_SIDE**2),  # the gray image at 8x8 pixels
    ("width", "<u4"),  # of the file, in pixels
    ("height", "<u4"),
    ("label", "<i4"),  # index into the classes of the part
    ("is_test", np.uint8),
    ("is_good", np.uint8),  # 0 if the picture could not be decoded
])  # fmt: skip


def digest(content: bytes) -> np.ndarray:
    """Returns the first DIGEST_BYTES of the SHA-256 of a picture file."""
    return np.frombuffer(hashlib.sha256(content).digest()[:DIGEST_BYTES], np.uint8)


def is_test(digest_of_file: np.ndarray, test_share: float) -> bool:
    """Returns whether a picture belongs to the test split, as a function of its content alone.

    Args:
      digest_of_file: [DIGEST_BYTES] uint8.
      test_share: share of the pictures in the test split, from 0 to 1.
    """
    number = int.from_bytes(digest_of_file[:8].tobytes(), "big")
    return number < test_share * 2**64


def thumb(image: np.ndarray) -> np.ndarray:
    """Returns an image [H, W, C] uint8 at THUMB_SIDE pixels in gray, [THUMB_SIDE**2] uint8."""
    gray = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image[..., :3]).convert("L")
    small = gray.resize((THUMB_SIDE, THUMB_SIDE), Image.Resampling.BOX)
    return np.asarray(small).reshape(-1)
