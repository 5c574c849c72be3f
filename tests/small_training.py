"""Small trainers on a few of the digits, for the laws of the training loop."""

from typing import Any

import torch
from block_loading import block_loader
from torch import nn

from fullbatch.data.augmentation import Augmentation
from fullbatch.data.dataset import ImageRequest, load_images
from fullbatch.data.loader import BlockLoader
from fullbatch.objective.full_batch import FullBatchObjective
from fullbatch.objective.gradient_penalty import GradRegularizer
from fullbatch.objective.losses import loss_function
from fullbatch.optim.ema import ExponentialMovingAverage
from fullbatch.optim.schedules import schedule_named
from fullbatch.training.state import TrainState
from fullbatch.training.step import Sampling, Step
from fullbatch.training.trainer import Trainer, TrainingPlan
from fullbatch.training.validation import validate
from fullbatch.transforms.clipping import ClipByNorm
from fullbatch.transforms.noise import AdditiveNoise, MultiplicativeNoise


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, 10),
    ).double()


def loader(training: bool = True, size: int = 50, **options: Any) -> BlockLoader:
    data = load_images("digits", ImageRequest(size=size, valid_size=size))
    options = {"batch_size": 16, "mean": data.mean, "std": data.std, "dtype": torch.float64, "seed": 5, **options}
    if training:
        options.setdefault("augmentation", Augmentation({"RandomCrop": [8, 1], "RandomHorizontalFlip": 0.5}, 7))
    return block_loader(data.train if training else data.valid, **options)


def trainer(steps: int = 10, stochastic: bool = False, shuffle: bool = False, seed: int = 0, **options: Any) -> Trainer:
    """Everything on at once: augmentation, dropout, batch norm, regularizer, momentum, clip, noise, average."""
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    regularizer = GradRegularizer(model, optimizer, loss_function(), block_strength=0.5)
    valid = loader(training=False).blocks(0)
    state = TrainState(model, optimizer, ExponentialMovingAverage(model, 0.9))
    step = Step(
        state,
        FullBatchObjective(model, loss_function(), [], sub_batch=8, regularizer=regularizer),
        loader(),
        transforms=[ClipByNorm(1.0), AdditiveNoise(0.001), MultiplicativeNoise(0.01)],
        sampling=Sampling(shuffle=shuffle),
        seed=11,
    )
    plan = {
        "schedule": schedule_named("cosine-decay", 10, 2),
        "stochastic": lambda step: stochastic,
        "validate_every": 3,
        **options,
    }
    return Trainer(
        state,
        step,
        TrainingPlan(steps, **plan),
        validate=lambda model, step: validate(model, loss_function(), valid),
    )
