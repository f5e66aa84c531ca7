"""The smallest embedder: the vector of an image is its mean colour, which is easy to check by eye.

embedder:
  class: "examples/mean_color.py:MeanColor"
"""

from embedders import ImageEmbedder


class MeanColor(ImageEmbedder):
    """Embeds by the mean of red, green and blue, each from 0 to 1."""

    def load_embedding_model(self, device):
        return lambda batch: batch.to(device).mean(dim=(2, 3))
