import random
import time

import pytest
import torch
from PIL import Image
from support.tools import encode, make_image, make_tar

from embedders import ImageEmbedder
from embedders.errors import EmbedderError, ShardError
from embedders.output.ledger import Ledger
from embedders.reading.images import ImageError
from embedders.reading.loader import ShardLoad
from embedders.reading.stack import stack_images


class Pixels(ImageEmbedder):
    """Gives each image back as it is, resized to 8 x 8."""

    batch_size = 4
    num_threads_per_worker = 3

    def load_embedding_model(self, device):
        return lambda batch: batch.flatten(1).float()

    def preprocess(self, image):
        return torch.tensor(list(image.resize((8, 8)).tobytes()), dtype=torch.uint8)


def load(embedder, path, account=None):
    """The batches; the account is kept in `account`, as a job keeps one."""
    account = account or ShardLoad(Ledger(str(path)))
    return list(account.run(embedder.load_dataset_shard, str(path)))


def failures(account):
    return {failed.key: failed.kind for failed in account.ledger.failed}


def test_batches_are_full_but_for_the_last_and_hold_their_own_metadata(tmp_path):
    members = {}
    for number in range(10):
        members |= {f"{number}.jpg": make_image(number), f"{number}.json": {"n": number}, f"{number}.txt": b" cap "}
    batches = load(Pixels(), make_tar(tmp_path / "s.tar", members))
    assert [len(batch) for batch, _ in batches] == [4, 4, 2]
    assert [len(metadata) for _, metadata in batches] == [4, 4, 2]
    rows = [row for _, metadata in batches for row in metadata]
    assert rows == [{"n": n, "caption": "cap", "__key__": str(n)} for n in range(10)]


def test_order_is_tar_order_whatever_the_threads_do(tmp_path):
    class Slow(Pixels):
        num_threads_per_worker = 8

        def preprocess(self, image):
            time.sleep(random.random() * 0.02)
            return torch.tensor(image.getpixel((0, 0)))

    colours = [(n, 255 - n, n // 2) for n in range(0, 256, 4)]
    members = {}
    for number in random.Random(0).sample(range(64), 64):  # neither sorted nor in order of size
        side = 3 + 40 * (number % 3)
        members[f"{number:03d}.png"] = encode(Image.new("RGB", (side, side), colours[number]))
    batches = load(Slow(), make_tar(tmp_path / "s.tar", members))
    keys = [row["__key__"] for _, metadata in batches for row in metadata]
    assert keys == [name.removesuffix(".png") for name in members]
    assert torch.cat([batch for batch, _ in batches]).tolist() == [list(colours[int(key)]) for key in keys]


def test_each_sample_that_cannot_be_used_is_named_and_the_others_go_on(tmp_path):
    good = make_image()
    account = ShardLoad(Ledger("s.tar"))
    path = make_tar(
        tmp_path / "s.tar",
        [
            ("good.jpg", good),
            ("cut.jpg", good[:300]),
            ("text.jpg", b"no image"),
            ("none.json", {"a": 1}),
            ("two.jpg", good),
            ("two.png", make_image(form="PNG")),
            ("merged.1.jpg", good),
            ("merged.2.jpg", good),
            ("json.jpg", good),
            ("json.json", b"{"),
            ("caption.jpg", good),
            ("caption.txt", b"\xff"),
            ("good.jpg", good),
            ("LICENSE", b""),
        ],
    )
    batches = load(Pixels(), path, account)
    assert [row["__key__"] for _, metadata in batches for row in metadata] == ["good"]
    assert failures(account) == {
        **dict.fromkeys(["cut", "text"], "undecodable"),
        **dict.fromkeys(["none", "two", "merged"], "no_single_image"),
        **dict.fromkeys(["json", "caption"], "bad_metadata"),
        **{"LICENSE": "bad_name", "good (again at byte 17408)": "repeated_key"},
    }
    assert account.ledger.seen == 10
    two = next(failed for failed in account.ledger.failed if failed.key == "two")
    assert (two.member, two.offset) == ("two.jpg", 4608)
    assert two.message == "2 images under one key (jpg, png); image_suffix chooses one"


def test_what_preprocess_raises_fails_the_sample_with_the_line(tmp_path):
    class Picky(Pixels):
        def preprocess(self, image):
            if image.width == 13:
                raise ValueError("thirteen\nis too much")
            if image.width == 14:
                raise ImageError("fourteen")
            return super().preprocess(image)

    account = ShardLoad(Ledger("s.tar"))
    members = {f"{width}.png": make_image(0, (width, 9), "PNG") for width in (12, 13, 14, 15)}
    batches = load(Picky(), make_tar(tmp_path / "s.tar", members), account)
    assert [row["__key__"] for row in batches[0][1]] == ["12", "15"]
    assert failures(account) == {"13": "preprocess_error", "14": "undecodable"}
    assert account.ledger.failed[0].message.startswith("ValueError: thirteen (test_loader.py, line ")


def test_images_of_different_shapes_are_one_error_that_names_the_sample(tmp_path):
    class Unsized(Pixels):
        def preprocess(self, image):
            return torch.zeros(3, image.height, image.width)

    members = {"a.jpg": make_image(size=(10, 10)), "b.jpg": make_image(size=(10, 11))}
    with pytest.raises(EmbedderError, match=r"sample 'b': .* shape \(3, 11, 10\), but \(3, 10, 10\) before"):
        load(Unsized(), make_tar(tmp_path / "s.tar", members))


def test_preprocess_that_gives_no_tensor_is_one_error(tmp_path):
    class NoTensor(Pixels):
        def preprocess(self, image):
            return image

    with pytest.raises(EmbedderError, match=r"sample 'a': preprocess gave a \w*Image\w*; expected a torch\.Tensor"):
        load(NoTensor(), make_tar(tmp_path / "s.tar", {"a.jpg": make_image()}))


@pytest.mark.parametrize("number", [0, -1, "4", 2.0])
@pytest.mark.parametrize("name", ["batch_size", "num_threads_per_worker"])
def test_a_number_of_images_or_threads_that_is_none_is_one_line(tmp_path, name, number):
    embedder = Pixels()
    setattr(embedder, name, number)
    with pytest.raises(EmbedderError, match=rf"s\.tar: {name}: {number!r}; expected a whole number of at least 1"):
        load(embedder, make_tar(tmp_path / "s.tar", {"a.jpg": make_image()}))


def test_damage_in_the_tar_reaches_the_caller(tmp_path):
    path = make_tar(tmp_path / "s.tar", {f"{n}.jpg": make_image(n) for n in range(9)})
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes()[:5000])
    with pytest.raises(ShardError, match="damaged"):
        load(Pixels(), path)


def test_only_chosen_samples_are_read_again(tmp_path):
    account = ShardLoad(Ledger("s.tar"), only={"1", "3"})
    batches = load(Pixels(), make_tar(tmp_path / "s.tar", {f"{n}.jpg": make_image(n) for n in range(5)}), account)
    assert [row["__key__"] for row in batches[0][1]] == ["1", "3"]
    assert account.ledger.seen == 2


def test_pixels_keep_the_layout_of_their_decoder_and_other_tensors_are_contiguous():
    decoded = [torch.randint(256, (5, 7, 3), dtype=torch.uint8).permute(2, 0, 1)[:, 1:4, 2:6] for _ in range(3)]
    of_another_format = torch.randint(256, (3, 3, 4), dtype=torch.uint8)
    images = [*decoded, of_another_format]
    metadata = [{"__key__": str(number)} for number in range(4)]
    batch = stack_images(images, metadata, "s.tar")
    assert torch.equal(batch, torch.stack(images))
    assert batch.is_contiguous(memory_format=torch.channels_last)
    # a user's model may flatten what its own preprocess made by view()
    assert stack_images([image.float() for image in images], metadata, "s.tar").is_contiguous()
