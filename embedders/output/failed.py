"""Failed samples: the kinds of failure, each with its fix, and the record of one sample.

A reader or a check raises `SampleError`; the code that handles the sample turns it into a `FailedSample`.
"""

from dataclasses import dataclass
from enum import StrEnum

from embedders.errors import make_one_line


class FailureKind(StrEnum):
    """The reason why a sample is not embedded: one word, by which failures are counted.

    Attributes:
        fix: What the user can do about it.
    """

    fix: str

    UNDECODABLE = "undecodable", "make the image again, or leave it out"
    NO_SINGLE_IMAGE = (
        "no_single_image",
        "put one image into each sample, with one dot in its name (0001.jpg), or set image_suffix",
    )
    BAD_METADATA = "bad_metadata", "fix the metadata, or choose another id_col, metadata_columns or type"
    PREPROCESS_ERROR = "preprocess_error", "fix preprocess or decode of the embedder's class"
    NOT_LOADED = "not_loaded", "yield every sample of the tar once from load_dataset_shard"
    BAD_VECTOR = "bad_vector", "check the weights, and whether the model divides by a norm of zero"
    BAD_SCORE = "bad_score", "check the weights of the classifier"
    REPEATED_KEY = (
        "repeated_key",
        "put the members of a key next to each other (tar --sort=name); use no key twice",
    )
    REPEATED_MEMBER = "repeated_member", "remove one of the two members"
    BAD_NAME = "bad_name", "rename or remove the member; a name needs a key, a dot and a suffix"
    NOT_A_FILE = "not_a_file", "put the file itself into the tar"
    TOO_LARGE = "too_large", "leave the member out, or split it"
    DAMAGED_TAR = "damaged_tar", "copy or make the tar again"

    def __new__(cls, word: str, fix: str):
        kind = str.__new__(cls, word)
        kind._value_ = word
        kind.fix = fix
        return kind


class SampleError(ValueError):
    """One sample cannot be used: only this sample fails, and the job continues with the next one.

    Attributes:
        kind: The kind of failure.
    """

    def __init__(self, kind: FailureKind, message: str):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class FailedSample:
    """A sample that was not embedded.

    Attributes:
        key: Its WebDataset key; the member's name if it has no key; for members that repeat an earlier key, that key
            and their position.
        kind: The kind of failure; a plain string if a later version wrote the file.
        message: What was wrong, in one line for people to read.
        member: Name of the tar member concerned, if there is one.
        offset: Position of that member's header in the (uncompressed) tar, in bytes.
    """

    key: str
    kind: FailureKind | str
    message: str
    member: str | None = None
    offset: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "message", make_one_line(self.message))
