"""Every kind of image source under one roof; a new one is a new file and a line here.

Example:
    >>> digits().train.labelled
    True
"""

from tailorbird.data.datasets import cifar, from_datasets
from tailorbird.data.digits import digits
from tailorbird.data.folder import folder
from tailorbird.data.images import ImageData
from tailorbird.data.parquet import parquet

__all__ = ["ImageData", "cifar", "digits", "folder", "from_datasets", "parquet"]
