"""Entry points of ``torch.hub.load(<repository>, <name>, pretrained=True)``: the paper's models for CIFAR-10.

``pretrained=True`` downloads the released weights, or reads them from ``file``. No checksums of the released files have
been published, so none are verified. Images are 3x32x32, normalized as in ``config/data/CIFAR10.yaml``.
"""

dependencies = ["torch"]


def resnet18_fbaug_clip(pretrained: bool = False, **options: object) -> object:
    """ResNet-18, trained by full-batch gradient descent with clipping, lr 0.4."""
    return _load(18, "final_fbaug_clip_lr04_resnet18.pth", pretrained, **options)


def resnet18_fbaug_gradreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-18, trained by full-batch gradient descent with regularization, lr 0.8."""
    return _load(18, "final_fbaug_gradreg_lr08_resnet18.pth", pretrained, **options)


def resnet18_fbaug_gradreg_v2(pretrained: bool = False, **options: object) -> object:
    """ResNet-18, trained by full-batch gradient descent with regularization, lr 1.6."""
    return _load(18, "final_fbaug_gradreg_lr16_resnet18.pth", pretrained, **options)


def resnet18_fbaug_highreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-18, trained by full-batch gradient descent with strong regularization (blocks of 32), lr 0.8."""
    return _load(18, "final_fbaug_highreg_lr08_resnet18.pth", pretrained, **options)


def resnet152_fbaug_highreg(pretrained: bool = False, **options: object) -> object:
    """ResNet-152, trained by full-batch gradient descent with strong regularization and shuffling, lr 0.8."""
    return _load(152, "final_fbaug_highreg_lr08_shuffle_resnet152.pth", pretrained, **options)


def _load(depth: int, name: str, pretrained: bool, **options: object) -> object:
    from fullbatch.models.released import released_resnet  # noqa: PLC0415 (importable only while torch.hub loads)

    return released_resnet(depth, name, pretrained, **options)
