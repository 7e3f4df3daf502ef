"""`python -m trainer.task` is `python -m trainer train`, as Vertex AI calls it."""

import sys

from trainer.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
