"""LAION's two classifiers for CLIP ViT-L/14 vectors, reimplemented. Their weights are read from a local file."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from embedders.classifier import ImageClassifier
from embedders.errors import EmbedderError, describe_error
from embedders.reading.magic import describe_start

WIDTH = 768


class AestheticClassifier(ImageClassifier):
    """LAION's improved aesthetic predictor: scores how much people like an image, from about 1 to 10.

    Made for CLIP ViT-L/14 image vectors of norm 1. The layers are those of C. Schuhmann's
    `improved-aesthetic-predictor`.

    Args:
        embedding_column: As in `ImageClassifier`.
        pred_column: As in `ImageClassifier`.
        batch_size: As in `ImageClassifier`.
        model_path: File of the weights, such as `sac+logos+ava1-l14-linearMSE.pth`.

    Raises:
        EmbedderError: `model_path` is missing; or, when the model is loaded, the weights do not fit its layers.
    """

    def __init__(
        self,
        embedding_column: str = "image_embedding",
        pred_column: str = "aesthetic_score",
        batch_size: int = -1,
        model_path: str | Path | None = None,
    ):
        super().__init__("aesthetic_classifier", embedding_column, pred_column, float, batch_size, WIDTH)
        self.model_path = check_path(model_path, self.model_name)

    def load_model(self, device: str) -> nn.Module:
        """Load the model, as `ImageClassifier` says."""
        return load_weights(AestheticModel(), self.model_path, self.model_name).to(device)


class NsfwClassifier(ImageClassifier):
    """LAION's CLIP-based NSFW detector for ViT-L/14: scores how likely an image is not safe for work, from 0 to 1.

    Made for CLIP ViT-L/14 image vectors of norm 1. The weights are those of the PyTorch version of that model.

    Args:
        embedding_column: As in `ImageClassifier`.
        pred_column: As in `ImageClassifier`.
        batch_size: As in `ImageClassifier`.
        model_path: File of the weights, such as `clip_autokeras_binary_nsfw.pth`.

    Raises:
        EmbedderError: As `AestheticClassifier`.
    """

    def __init__(
        self,
        embedding_column: str = "image_embedding",
        pred_column: str = "nsfw_score",
        batch_size: int = -1,
        model_path: str | Path | None = None,
    ):
        super().__init__("nsfw_classifier", embedding_column, pred_column, float, batch_size, WIDTH)
        self.model_path = check_path(model_path, self.model_name)

    def load_model(self, device: str) -> nn.Module:
        """Load the model, as `ImageClassifier` says."""
        return load_weights(NsfwModel(), self.model_path, self.model_name).to(device)


class AestheticModel(nn.Module):
    """Five linear layers with only dropout between them, as the published weights were trained."""

    def __init__(self):
        super().__init__()
        widths, dropouts = (WIDTH, 1024, 128, 64, 16, 1), (0.2, 0.2, 0.1)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(before, after))
            layers += map(nn.Dropout, dropouts[number : number + 1])
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (n, 1) for vectors of shape (n, 768)."""
        return self.layers(vectors)


class Normalization(nn.Module):
    """Scales each dimension to mean 0 and variance 1, by the statistics of the training data."""

    def __init__(self, width: int):
        super().__init__()
        self.mean: torch.Tensor
        self.variance: torch.Tensor
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("variance", torch.ones(width))

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Normalise vectors of shape (n, width)."""
        return (vectors - self.mean) * self.variance.rsqrt()


class NsfwModel(nn.Module):
    """A normalisation, three layers with ReLU and one with a sigmoid; named as in the published weights."""

    def __init__(self):
        super().__init__()
        self.norm = Normalization(WIDTH)
        self.linear_1 = nn.Linear(WIDTH, 64)
        self.linear_2 = nn.Linear(64, 512)
        self.linear_3 = nn.Linear(512, 256)
        self.linear_4 = nn.Linear(256, 1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (n, 1), in 0..1, for vectors of shape (n, 768)."""
        hidden = self.norm(vectors)
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            hidden = layer(hidden).relu()
        return self.linear_4(hidden).sigmoid()


def check_path(model_path: str | Path | None, name: str) -> str:
    """Return the path of the weights as text; unlike NeMo Curator, nothing is downloaded if it is missing.

    Raises:
        EmbedderError: The path is missing.
    """
    if not model_path:
        raise EmbedderError(
            f"{name}: model_path is {model_path!r}; expected a file of weights; nothing is downloaded"
        )
    return str(model_path)


def load_weights(model: nn.Module, path: str, name: str) -> nn.Module:
    """Load a file of weights into a model.

    Raises:
        EmbedderError: The file cannot be read, or its weights do not have exactly the model's names and shapes.
    """
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        found = {key: tuple(value.shape) for key, value in weights.items()}
    except Exception as error:
        raise EmbedderError(
            f"{name}: weights {path!r} cannot be read: {describe_error(error)}{_describe_file(path)}; expected what "
            "torch.save(model.state_dict(), ...) wrote"
        ) from error
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    if found != wanted:
        wrong = sorted(key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key))
        key = wrong[0]
        raise EmbedderError(
            f"{name}: weights {path!r} do not fit: {key!r} is {found.get(key, 'missing')}; expected "
            f"{wanted.get(key, 'no such key')} ({len(wrong)} keys differ); use the weights of this classifier"
        )
    model.load_state_dict(weights)
    return model


def _describe_file(path: str) -> str:
    return f"; it {describe_start(path)}" if Path(path).is_file() else ""
