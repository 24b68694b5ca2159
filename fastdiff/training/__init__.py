"""Training: data, loop, averaged weights, checkpoints that resume exactly."""

from fastdiff.training.config import TrainConfig as TrainConfig
from fastdiff.training.loop import TrainResult as TrainResult
from fastdiff.training.loop import train as train
from fastdiff.training.optimizer import AdamWEMA as AdamWEMA
