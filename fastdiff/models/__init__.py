"""Networks and their configurations."""

from fastdiff.models.classifier import Classifier as Classifier
from fastdiff.models.config import ClassifierConfig as ClassifierConfig
from fastdiff.models.config import ModelConfig as ModelConfig
from fastdiff.models.config import UNetConfig as UNetConfig
from fastdiff.models.unet import SuperResUNet as SuperResUNet
from fastdiff.models.unet import UNet as UNet
from fastdiff.models.unet import build_model as build_model
