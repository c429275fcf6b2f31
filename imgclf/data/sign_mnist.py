"""Sign-MNIST: letters of the American Sign Language alphabet as rows of 28x28 grey pixels."""

from imgclf.data.datamodule import ImageDataModule

__all__ = ["SignMNISTDataModule"]

# The file's labels are positions in the alphabet. J (9) and Z (25) are signed with a movement and never occur.
LETTERS = {str(position): chr(ord("A") + position) for position in range(25) if position != 9}


class SignMNISTDataModule(ImageDataModule):
    """Kaggle's sign-language MNIST: `sign_mnist_{train,test}.csv`, a header, then `label,pixel1..pixel784`, CRLF.

    There is no validation file: like the reference, the test file is cut in its order, the first 60 % for validation
    (4,303 of 7,172) and the rest for test (2,869). Labels become letters, so that none is off by one after the missing J.
    """

    name = "sign_mnist"
    handle = "datamunge/sign-language-mnist"
    licence = "CC0-1.0"
    splits = {
        "train": {"kind": "pixels", "files": ["sign_mnist_train.csv"], "label_names": LETTERS},
        "val": {"kind": "pixels", "files": ["sign_mnist_test.csv"], "rows": [0, 0.6], "label_names": LETTERS,
                "anywhere": True},
        "test": {"kind": "pixels", "files": ["sign_mnist_test.csv"], "rows": [0.6, 1], "label_names": LETTERS,
                 "anywhere": True},
    }  # fmt: skip
    expected = {24: (27_455, 4_303, 2_869)}
