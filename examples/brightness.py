"""The smallest classifier: its score is the mean of the vector, so of a mean colour it is the image's brightness.

scores:
  - class: "examples/brightness.py:Brightness"
"""

from embedders import ImageClassifier


class Brightness(ImageClassifier):
    """Scores by the mean of the vector, made for the three dimensions of `mean_color.MeanColor`."""

    def __init__(self, pred_column="brightness", embedding_size=3):
        super().__init__("brightness", pred_column=pred_column, embedding_size=embedding_size)

    def load_model(self, device):
        return lambda vectors: vectors.mean(dim=1)
