"""Entry points of ``torch.hub.load(<this repository>, <name>, pretrained=True)``: models of the paper, on CIFAR-10.

``pretrained=True`` takes the weights from ``file`` where one is named, else it downloads the paper's (no checksums of
those are known, so none are checked). Images are 3x32x32, normalized as in ``config/data/CIFAR10.yaml``.
"""

dependencies = ["torch"]


def resnet18_fbaug_clip(pretrained: bool = False, **options: object) -> object:
    """ResNet-18 of full-batch gradient descent with clipping, lr 0.4."""
    return _load(18, "final_fbaug_clip_lr04_resnet18.pth", pretrained, **options)


def resnet18_fbaug_gradreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-18 of full-batch gradient descent with regularization, lr 0.8."""
    return _load(18, "final_fbaug_gradreg_lr08_resnet18.pth", pretrained, **options)


def resnet18_fbaug_gradreg_v2(pretrained: bool = False, **options: object) -> object:
    """ResNet-18 of full-batch gradient descent with regularization, lr 1.6."""
    return _load(18, "final_fbaug_gradreg_lr16_resnet18.pth", pretrained, **options)


def resnet18_fbaug_highreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-18 of full-batch gradient descent with strong regularization (blocks of 32), lr 0.8."""
    return _load(18, "final_fbaug_highreg_lr08_resnet18.pth", pretrained, **options)


def resnet152_fbaug_highreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-152 of full-batch gradient descent with strong regularization and shuffling, lr 0.8."""
    return _load(152, "final_fbaug_highreg_lr08_shuffle_resnet152.pth", pretrained, **options)


def _load(depth: int, name: str, pretrained: bool, **options: object) -> object:
    from fullbatch.models.released import released_resnet  # noqa: PLC0415 (found only while torch.hub loads)

    return released_resnet(depth, name, pretrained, **options)
