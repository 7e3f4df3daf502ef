from trainer.api import Run as Run
from trainer.api import configure as configure
from trainer.api import load as load
from trainer.api import train as train

__version__: str
