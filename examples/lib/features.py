"""What a network without its last layer computes of images: all that a new last layer needs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from examples.lib.distributed import gather
from examples.lib.metrics import progress_bar, sound_batches


class Features(Dataset[tuple[Tensor, int]]):
    """The features of images and their labels. For training, they are the same in each epoch.

    An item is asked for by the index of the image, or by (epoch, index).

    Args:
        features: of all images (N, num_features, 1, 1).
        labels: of all images (N,).
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        self.features = features
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index = key[1] if isinstance(key, tuple) else key
        return self.features[index], int(self.labels[index])


def compute_features(
    features_of: Callable[[np.ndarray], np.ndarray], loader: DataLoader[Any]
) -> Features:
    """Return the features of all images, those of all processes, in the order of the data set.

    Args:
        features_of: a function from pixels, uint8 (N, 3, H, W), to features (N, num_features).
        loader: yields pixels and labels: of rank r, the images r, r + WORLD_SIZE, and so on.
    """
    rows: list[tuple[np.ndarray, int]] = []
    with progress_bar(loader, "computing features") as bar:
        for pixels, labels in sound_batches(bar):
            rows += zip(features_of(pixels.numpy()), labels.tolist(), strict=True)
    rows_of_all = gather(rows)
    features = np.stack([feature for feature, _ in rows_of_all])
    all_labels = torch.tensor([label for _, label in rows_of_all])
    return Features(torch.from_numpy(features)[:, :, None, None], all_labels)
