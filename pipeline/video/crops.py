"""A frame and the track of a person -> a square picture of the face, as data sets have them."""

import importlib.metadata
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.video.detector import SHA256
from pipeline.video.tracks import Track

Cropping = Literal["crop", "aligned"]

# Grows when the same videos give other crops: part of a store's identity.
RULES = 1
# Where alignment puts right eye, left eye, nose and the corners of the mouth, as x + yj in sides of
# the picture; the proportions are those of ArcFace's template.
TEMPLATE = np.array([0.375 + 0.4j, 0.625 + 0.4j, 0.5 + 0.543j, 0.396 + 0.689j, 0.604 + 0.689j])
_PIXEL = 0.5 + 0.5j  # its centre, which is a whole number to OpenCV


def cropping_rule(cropping: Cropping) -> str:
    """All that decides what is cropped, for a store's identity; begins with ``cropping``."""
    opencv = importlib.metadata.version("opencv-python-headless")
    return f"{cropping}, rules {RULES}, opencv {opencv}, yunet {SHA256}"


@dataclass(frozen=True)
class Crop:
    """Cuts one person out of the frames of a video; all pictures of a person have one size.

    ``crop`` is a square around the box of the face, MARGIN times its longer side. ``aligned`` turns
    and scales the frame so that the landmarks come as close to TEMPLATE as they can (least
    squares). What is beyond the frame repeats its border.
    """

    track: Track
    cropping: Cropping = "crop"

    def __call__(self, frame: int, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The picture of a frame of the track, uint8 [side_px, side_px, 3]."""
        side_px = self.track.side_px
        scale, shift = self._similarity(frame - self.track.first)
        shift += scale * _PIXEL - _PIXEL
        matrix = np.array(
            [[scale.real, -scale.imag, shift.real], [scale.imag, scale.real, shift.imag]]
        )
        crop_HWC = cv2.warpAffine(
            image_HWC,
            matrix,
            (side_px, side_px),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        return np.asarray(crop_HWC, np.uint8)

    def _similarity(self, number: int) -> tuple[complex, complex]:
        """(a, b) such that the point z of the frame is a z + b of the picture."""
        face, side_px = self.track.faces_F[number], self.track.side_px
        if self.cropping == "aligned":
            return fit_similarity(face[4:14:2] + 1j * face[5:14:2], side_px * TEMPLATE)
        x, y, width, height = face[:4].tolist()
        scale = side_px / self.track.sides_F[number]
        return scale, side_px * _PIXEL - scale * complex(x + width / 2, y + height / 2)


def fit_similarity(z: NDArray[np.complex128], w: NDArray[np.complex128]) -> tuple[complex, complex]:
    """The a and b with the least sum of |a z + b - w|^2, of points x + yj."""
    from_z, from_w = z - z.mean(), w - w.mean()
    spread = float((from_z * from_z.conj()).real.sum())
    a = complex((from_z.conj() * from_w).sum()) / max(spread, 1e-9)
    return a, complex(w.mean() - a * z.mean())
