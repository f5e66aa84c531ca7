"""LAION's two heads over CLIP ViT-L/14, their layers written anew: weights come from a file, never from a network."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from embedders.classifier import ImageClassifier
from embedders.errors import EmbedderError, describe_error
from embedders.reading.magic import describe_start

WIDTH = 768


class AestheticClassifier(ImageClassifier):
    """How much people like to look at an image, about 1 to 10: LAION's improved aesthetic predictor.

    Made for CLIP ViT-L/14 image vectors of length 1. Layers as in `improved-aesthetic-predictor` of C. Schuhmann.

    Args:
        embedding_column: As in `ImageClassifier`.
        pred_column: As in `ImageClassifier`.
        batch_size: As in `ImageClassifier`.
        model_path: The weights, `sac+logos+ava1-l14-linearMSE.pth` for one.

    Raises:
        EmbedderError: There is no `model_path`; and, when the model is loaded, the weights are not for these layers.
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
    """How likely an image is not safe for work, 0 to 1: LAION's CLIP-based NSFW detector, the one for ViT-L/14.

    Made for CLIP ViT-L/14 image vectors of length 1. The weights are those of the PyTorch form of that model.

    Args:
        embedding_column: As in `ImageClassifier`.
        pred_column: As in `ImageClassifier`.
        batch_size: As in `ImageClassifier`.
        model_path: The weights, `clip_autokeras_binary_nsfw.pth` for one.

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
    """Five linear layers and nothing between them but dropout; the published weights were trained so."""

    def __init__(self):
        super().__init__()
        widths, dropouts = (WIDTH, 1024, 128, 64, 16, 1), (0.2, 0.2, 0.1)
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(widths)):
            layers.append(nn.Linear(before, after))
            layers += map(nn.Dropout, dropouts[number : number + 1])
        self.layers = nn.Sequential(*layers)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Score vectors of shape (n, 768): (n, 1)."""
        return self.layers(vectors)


class Normalization(nn.Module):
    """Brings each number of a vector to the mean 0 and the variance 1 of the training data."""

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
    """A normalisation, three layers with ReLU and one with a sigmoid; names as in the published weights."""

    def __init__(self):
        super().__init__()
        self.norm = Normalization(WIDTH)
        self.linear_1 = nn.Linear(WIDTH, 64)
        self.linear_2 = nn.Linear(64, 512)
        self.linear_3 = nn.Linear(512, 256)
        self.linear_4 = nn.Linear(256, 1)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """Score vectors of shape (n, 768): (n, 1), in 0..1."""
        hidden = self.norm(vectors)
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            hidden = layer(hidden).relu()
        return self.linear_4(hidden).sigmoid()


def check_path(model_path: str | Path | None, name: str) -> str:
    """Refuse a head without weights: NeMo Curator would download them here.

    Raises:
        EmbedderError: There is no path.
    """
    if not model_path:
        raise EmbedderError(
            f"{name}: model_path is {model_path!r}; expected a file of weights; nothing is downloaded"
        )
    return str(model_path)


def load_weights(model: nn.Module, path: str, name: str) -> nn.Module:
    """Load a file of weights into a model, which must have exactly these.

    Raises:
        EmbedderError: The file cannot be read, or its weights are of other names or shapes.
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
            f"{wanted.get(key, 'no such key')} ({len(wrong)} keys differ); give the weights of this head"
        )
    model.load_state_dict(weights)
    return model


def _describe_file(path: str) -> str:
    return f"; it {describe_start(path)}" if Path(path).is_file() else ""
