"""`python -m trainer.task` is `python -m trainer train`, as Vertex AI calls it."""

import sys

from trainer.__main__ import run_and_end

if __name__ == "__main__":
    run_and_end(["train", *sys.argv[1:]])
