"""A model of open_clip with its own preprocessing; the vectors can be compared with those of its text encoder.

    embedder:
      class: "examples/open_clip_model.py:OpenClipEmbedder"
      args: {model_name: "local-dir:models/clip", batch_size: 256}

The folder contains open_clip_config.json and the weights, as downloaded from the Hugging Face hub. If jobs have a
network, use a name and a tag instead: `{model_name: ViT-B-32, pretrained: laion2b_s34b_b79k}`.
"""

import open_clip
import torch

from embedders import ImageEmbedder


class OpenClipEmbedder(ImageEmbedder):
    """Embeds with the dimension of the model's joint space, and norm 1."""

    def __init__(self, model_name, pretrained=None, batch_size=64, autocast=True):
        super().__init__(model_name)
        self.batch_size = batch_size
        self.autocast = autocast
        # Loads the model on the CPU, because open_clip returns the preprocessing only together with the model.
        self.model, self.preprocess = open_clip.create_model_from_pretrained(model_name, pretrained)

    def load_embedding_model(self, device):
        model = self.model.eval().to(device)
        enabled = self.autocast and device == "cuda"

        def embed(batch):
            with torch.autocast(device, torch.bfloat16, enabled=enabled):
                return model.encode_image(batch.to(device), normalize=True)

        return embed
