"""The smallest embedder: the vector of an image is its mean colour, three numbers that an eye can check.

embedder:
  class: "examples/mean_color.py:MeanColor"
"""

from embedders import ImageEmbedder


class MeanColor(ImageEmbedder):
    """Red, green and blue of the mean pixel, each in 0..1."""

    def load_embedding_model(self, device):
        return lambda batch: batch.to(device).mean(dim=(2, 3))
