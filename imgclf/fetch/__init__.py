"""Downloads over HTTP and from Kaggle, and safe unpacking of archives."""

from imgclf.fetch.http import fetch_image, is_url
from imgclf.fetch.kaggle import destination, download_dataset

__all__ = ["destination", "download_dataset", "fetch_image", "is_url"]
