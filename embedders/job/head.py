"""A classifier's model on its device: loads it, runs it, and checks the scores that it returns."""

import numpy as np
import pyarrow as pa
import torch

from embedders.classifier import ImageClassifier, Scores
from embedders.errors import EmbedderError, TarquetError, describe_error
from embedders.gpu.failures import explain_failure
from embedders.job.provenance import describe_classifier
from embedders.job.weights import load_model
from embedders.output.provenance import ClassifierRecord


class Head:
    """A classifier's model on its device, and the checks of what it returns.

    Attributes:
        field: Name and type of the column of scores, which is not nullable.
        weights: Fingerprint of the weights, from `weights.hash_weights`.

    Raises:
        EmbedderError: The object is not a classifier, or its model cannot be loaded.
        GpuError: The GPU was lost, or is too small.
    """

    def __init__(self, classifier: ImageClassifier, device: str):
        if not isinstance(classifier, ImageClassifier):
            raise EmbedderError(f"classifiers: {classifier!r} is not an ImageClassifier; expected only such objects")
        if not hasattr(classifier, "embedding_size"):
            raise EmbedderError(
                f"{type(classifier).__name__}.__init__ does not call super().__init__(...); add the call"
            )
        self.classifier = classifier
        self.device = device
        self.field = pa.field(classifier.pred_column, find_type(classifier), nullable=False)
        self.forward, self.weights = load_model(classifier, "load_model", device)
        # Its own stream: in the model's stream, the scores of one batch would wait for the vectors of the next.
        self._stream = torch.cuda.Stream() if device == "cuda" else None

    def score(self, vectors: np.ndarray, where: str) -> pa.Array:
        """Score vectors.

        Args:
            vectors: float32 or float16, of shape (n, dimension).
            where: Where the vectors come from, for messages.

        Returns:
            One value per vector, of the column's type; null where the model returned NaN or infinity.

        Raises:
            EmbedderError: The vectors have another dimension than the model expects, or it did not return scores.
            GpuError: The GPU was lost, or is too small.
        """
        name, wanted = self.classifier.model_name, self.classifier.embedding_size
        if vectors.shape[1] != wanted:
            raise EmbedderError(
                f"{where}: the vectors have {vectors.shape[1]} dimensions, and {name} expects {wanted} "
                "(embedding_size); use the classifier that was made for this model"
            )
        if not len(vectors):
            return pa.nulls(0, self.field.type)
        try:
            raw = self._run(vectors)
        except TarquetError:
            raise
        except Exception as error:
            raise explain_failure(error, f"{where}: {name}", self.device) from error
        good = np.isfinite(raw)
        if not good.any():
            return pa.nulls(len(vectors), self.field.type)
        try:
            scores = pa.array(np.asarray(self.classifier.postprocess(raw[good].view(Scores)))).cast(self.field.type)
        except Exception as error:
            raise EmbedderError(
                f"{where}: {name}: postprocess for a column of {self.field.type} (pred_type): {describe_error(error)}"
            ) from error
        if len(scores) != good.sum() or scores.null_count:
            raise EmbedderError(
                f"{where}: {name}: postprocess returned {len(scores)} values, {scores.null_count} of them null; "
                f"expected {good.sum()}, none of them null"
            )
        return scores if good.all() else scores.take(pa.array(np.cumsum(good) - 1, mask=~good))

    def _run(self, vectors: np.ndarray) -> np.ndarray:
        size = self.classifier.batch_size
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            rows = torch.tensor(vectors).to(self.device, torch.float32)
            parts = []
            for part in rows.split(size if size > 0 else len(rows)):
                scores = torch.as_tensor(self.forward(part))
                if scores.shape not in ((len(part),), (len(part), 1)) and not scores.numel() == len(part) == 1:
                    raise EmbedderError(
                        f"{self.classifier.model_name} returned scores of shape {tuple(scores.shape)} for "
                        f"{len(part)} vectors; expected ({len(part)},) or ({len(part)}, 1)"
                    )
                scores = scores.float() if scores.is_floating_point() and scores.dtype != torch.float64 else scores
                parts.append(scores.reshape(-1).cpu())
        return torch.cat(parts).numpy()

    def describe(self) -> ClassifierRecord:
        """Return how the scores were made, for the footer of their file."""
        return describe_classifier(self.classifier, self.weights)


def find_type(classifier: ImageClassifier) -> pa.DataType:
    """Return the type of the column of scores for a classifier's `pred_type`.

    Raises:
        EmbedderError: There is no such type.
    """
    if classifier.pred_type is float or classifier.pred_type == "float":
        return pa.float32()
    try:
        dtype = np.dtype(classifier.pred_type)
        return pa.string() if dtype.kind == "U" else pa.from_numpy_dtype(dtype)
    except (TypeError, pa.ArrowException) as error:
        raise EmbedderError(
            f"{classifier.model_name}: pred_type is {classifier.pred_type!r}; expected float, int, bool, str, or a "
            'name such as "float64"'
        ) from error
