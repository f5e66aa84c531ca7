"""The smallest head: the score of a vector is the mean of its numbers; of a mean colour, how bright the image is.

scores:
  - class: "examples/brightness.py:Brightness"
"""

from embedders import ImageClassifier


class Brightness(ImageClassifier):
    """Mean of the vector, for the three numbers of `mean_color.MeanColor`."""

    def __init__(self, pred_column="brightness", embedding_size=3):
        super().__init__("brightness", pred_column=pred_column, embedding_size=embedding_size)

    def load_model(self, device):
        return lambda vectors: vectors.mean(dim=1)
