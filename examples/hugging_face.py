"""A vision model of Hugging Face transformers, given by its name on the hub or the path of its folder.

    embedder:
      class: "examples/hugging_face.py:HuggingFaceEmbedder"
      args: {model_name: facebook/dinov2-base, batch_size: 128}

Works with any model of `AutoModel` that has a pooled output: DINOv2, DINOv3, ViT, Swin, ConvNeXt.
"""

from torch.nn.functional import normalize
from transformers import AutoImageProcessor, AutoModel

from embedders import ImageEmbedder


class HuggingFaceEmbedder(ImageEmbedder):
    """Embeds by the pooled output, normalized to norm 1."""

    def __init__(self, model_name, batch_size=64):
        super().__init__(model_name)
        self.batch_size = batch_size
        self.processor = AutoImageProcessor.from_pretrained(model_name)

    def preprocess(self, image):
        return self.processor(images=image, return_tensors="pt")["pixel_values"][0]

    def load_embedding_model(self, device):
        model = AutoModel.from_pretrained(self.model_name).eval().to(device)
        return lambda batch: normalize(model(pixel_values=batch.to(device)).pooler_output.flatten(1), dim=-1)
