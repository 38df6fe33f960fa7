"""Finite networks trained by gradient descent: on distilled sets, to judge them, and as encoders.

``config`` holds the settings, ``loop`` trains several seeds, ``evaluate`` judges sets as the field does, and
``encoder`` makes feature maps of trained networks. Importing it loads flax and optax.
"""

from jaxdistill.augment import Augmentation
from jaxdistill.training.config import TrainConfig
from jaxdistill.training.encoder import train_encoder
from jaxdistill.training.evaluate import NetworkScores, evaluate_images, evaluate_set
from jaxdistill.training.loop import Trained, train_networks

__all__ = [
    "Augmentation",
    "NetworkScores",
    "TrainConfig",
    "Trained",
    "evaluate_images",
    "evaluate_set",
    "train_encoder",
    "train_networks",
]
