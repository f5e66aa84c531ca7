import io

import pytest
import torch
from mean_color import MeanColor
from PIL import Image
from support.tools import encode, make_image, make_tar

from embedders import ImageEmbedder
from embedders.base import uses_default_loader


def test_a_class_without_a_model_cannot_be_built():
    with pytest.raises(TypeError, match="load_embedding_model"):
        ImageEmbedder()


def test_the_constructor_takes_nemos_arguments():
    embedder = MeanColor(model_name="m", image_embedding_column="vector", classifiers=[])
    assert (embedder.model_name, embedder.image_embedding_column, embedder.classifiers) == ("m", "vector", [])
    plain = MeanColor()
    assert (plain.model_name, plain.image_embedding_column, plain.classifiers) == ("MeanColor", "image_embedding", ())


@pytest.mark.parametrize("size", [(224, 224), (300, 200), (200, 300), (1, 1), (7, 500), (500, 224)])
def test_the_default_preprocess_gives_224_pixels_in_0_to_1(size):
    image = Image.open(io.BytesIO(make_image(1, size, "PNG")))
    tensor = MeanColor().preprocess(image)
    assert tensor.shape == (3, 224, 224)
    assert tensor.dtype == torch.float32
    assert 0 <= tensor.min() <= tensor.max() <= 1


def test_the_default_preprocess_shows_the_centre():
    image = Image.new("RGB", (672, 224), "red")
    image.paste("blue", (224, 0, 448, 224))
    assert MeanColor().preprocess(image)[:, 112, 2].tolist() == pytest.approx([0, 0, 1], abs=0.02)
    tall = image.transpose(Image.Transpose.ROTATE_90)
    assert MeanColor().preprocess(tall)[:, 2, 112].tolist() == pytest.approx([0, 0, 1], abs=0.02)


def test_a_thread_like_image_does_not_fill_the_memory():
    # One pixel high: resized whole, before the crop, it would take 224 x 224 million pixels.
    tensor = MeanColor().preprocess(Image.new("RGB", (1_000_000, 1), "red"))
    assert tensor[:, 0, 0].tolist() == [1, 0, 0]


def test_the_background_is_the_embedders_own():
    embedder = MeanColor()
    clear = encode(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    assert embedder.decode(clear).mean() == 1
    embedder.background = "black"
    assert embedder.decode(clear).mean() == 0


def test_the_default_loader_is_told_from_a_users_own(tmp_path):
    class Own(MeanColor):
        def load_dataset_shard(self, tar_path):
            return []

    assert uses_default_loader(MeanColor())
    assert not uses_default_loader(Own())


def test_a_shard_can_be_read_without_a_job(tmp_path):
    path = make_tar(tmp_path / "s.tar", {"1.jpg": make_image(), "2.jpg": b"broken"})
    ((batch, metadata),) = MeanColor().load_dataset_shard(path)
    assert batch.shape == (1, 3, 224, 224)
    assert metadata == [{"__key__": "1"}]
