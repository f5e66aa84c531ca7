"""A model of open_clip with its own preprocessing; the vectors go with those that its text half makes.

    embedder:
      class: "examples/open_clip_model.py:OpenClipEmbedder"
      args: {model_name: "local-dir:models/clip", batch_size: 256}

That is a folder with open_clip_config.json and the weights, as one fetches it from the Hugging Face hub. Where jobs
have a network, give a name and a tag instead: `{model_name: ViT-B-32, pretrained: laion2b_s34b_b79k}`.
"""

import open_clip
import torch

from embedders import ImageEmbedder


class OpenClipEmbedder(ImageEmbedder):
    """As many numbers per image as the model's joint space has, of length 1."""

    def __init__(self, model_name, pretrained=None, batch_size=64, autocast=True):
        super().__init__(model_name)
        self.batch_size = batch_size
        self.autocast = autocast
        # On the CPU, because open_clip tells the preprocessing of a model only with the model.
        self.model, self.preprocess = open_clip.create_model_from_pretrained(model_name, pretrained)

    def load_embedding_model(self, device):
        model = self.model.eval().to(device)
        enabled = self.autocast and device == "cuda"

        def embed(batch):
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                return model.encode_image(batch.to(device), normalize=True)

        return embed
